//! A run's pipeline as the core keeps it: ten thousand steps of a matrix differ in their names and commands, so the
//! rest of them is kept once.

use std::ops::Deref;
use std::sync::Arc;

use longshore_protocol::StepName;
use longshore_protocol::job::{Command, StepSpec};

use crate::pipeline::{Concurrency, Parent, Pipeline, PlannedStep, Retry, SnapshotRule, SourceDir};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) timeout_ms: Option<u64>,
    /// As the pipeline has them.
    pub(super) steps: Box<[Planned]>,
}

/// A step of the pipeline: what is its own, and beside it what it has in [common](Common).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    pub(super) name: StepName,
    pub(super) cache_key: Option<Box<str>>,
    text: Text,
    common: Arc<Common>,
}

/// What of a command differs from step to step.
#[derive(Clone, Debug, PartialEq)]
enum Text {
    Script(Box<str>),
    Argv(Box<[String]>),
}

/// What many steps have alike. As in a [`PlannedStep`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Common {
    /// `None`: it starts from a step's files.
    pub(super) image: Option<String>,
    /// Its command without its text: see [`Planned::whole_spec`].
    pub(super) spec: StepSpec,
    pub(super) sources: Vec<SourceDir>,
    pub(super) retry: Retry,
    pub(super) snapshot: SnapshotRule,
    pub(super) keep_going: bool,
    pub(super) priority: i32,
    pub(super) queue_timeout_ms: Option<u64>,
    pub(super) concurrency: Option<Concurrency>,
}

impl Deref for Planned {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

impl From<&Pipeline> for Plan {
    fn from(pipeline: &Pipeline) -> Self {
        let mut steps: Vec<Planned> = Vec::with_capacity(pipeline.steps.len());
        for step in &pipeline.steps {
            let (text, common) = split(step);
            // The instances of a matrix stand together, or in turn with those of one other.
            let before = steps.iter().rev().take(2).find(|before| *before.common == common);
            let common = before.map_or_else(|| Arc::new(common), |before| Arc::clone(&before.common));
            let cache_key = step.cache_key.as_deref().map(Box::from);
            steps.push(Planned { name: step.name.clone(), cache_key, text, common });
        }
        Self { name: pipeline.name.clone(), timeout_ms: pipeline.timeout_ms, steps: steps.into() }
    }
}

fn split(step: &PlannedStep) -> (Text, Common) {
    let PlannedStep { name: _, parent, needs: _, spec, sources, retry, cache_key: _, .. } = step;
    let (text, rest) = match &spec.command {
        Command::Script { script, shell } => {
            (Text::Script(Box::from(&**script)), Command::Script { script: String::new(), shell: shell.clone() })
        }
        Command::Argv(argv) => (Text::Argv(Box::from(&**argv)), Command::Argv(Vec::new())),
    };
    let image = match parent {
        Parent::Image(image) => Some(image.clone()),
        Parent::Step(_) => None,
    };
    let common = Common {
        image,
        spec: StepSpec { command: rest, ..spec.clone() },
        sources: sources.clone(),
        retry: retry.clone(),
        snapshot: step.snapshot,
        keep_going: step.keep_going,
        priority: step.priority,
        queue_timeout_ms: step.queue_timeout_ms,
        concurrency: step.concurrency.clone(),
    };
    (text, common)
}

impl Planned {
    /// The step as it is carried out, but for its packed sources.
    pub(super) fn whole_spec(&self) -> StepSpec {
        let mut spec = self.common.spec.clone();
        match (&self.text, &mut spec.command) {
            (Text::Script(text), Command::Script { script, .. }) => (**text).clone_into(script),
            (Text::Argv(text), Command::Argv(argv)) => *argv = text.to_vec(),
            _ => unreachable!("a text is of its command's kind"),
        }
        spec
    }
}
