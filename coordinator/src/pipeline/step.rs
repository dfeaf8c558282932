//! One step of a file to its planned instances.

use std::collections::HashSet;

use indexmap::IndexMap;
use longshore_protocol::job::{Command, Resources, StepSpec};
use longshore_protocol::{PoolName, StepName};

use super::bounds;
use super::matrix::{self, Values};
use super::mistake::{Mistake, Mistakes};
use super::model::{Parent, PlannedStep, SourceDir};
use super::names::{Link, Names, Target};
use super::raw::{RawPipeline, RawRetry, RawRetryRule, RawStep, Scalar};
use super::retry::{Retry, RetryOn};
use super::template::Templates;
use super::tree::Node;
use super::units;

/// An hour: long enough for most builds, short enough that a hung step is noticed the same day.
const TIMEOUT_DEFAULT_MS: u64 = 3600 * 1000;

/// Docker's own `stop` waits as long.
const GRACE_MS: u64 = 10 * 1000;

/// What a step waits for, as the file says it.
pub(super) struct Links {
    pub(super) parent: Option<Link>,
    pub(super) needs: Vec<Link>,
}

/// What all steps need to be resolved.
pub(super) struct Resolver<'a> {
    pub(super) raw: &'a RawPipeline,
    pub(super) root: &'a Node,
    pub(super) text: &'a str,
    pub(super) names: Names<'a>,
    pub(super) instances: &'a [Vec<Values>],
    pub(super) templates: Templates,
    pub(super) mistakes: &'a mut Mistakes,
}

impl Resolver<'_> {
    /// The instances of a step. After the first wrong one the rest would say the same.
    pub(super) fn step(&mut self, at: usize, node: &Node, links: &Links) -> Vec<PlannedStep> {
        let (raw, instances) = (self.raw, self.instances);
        let step = &raw.steps[at];
        self.check_choices(step, node);
        instances[at].iter().map_while(|values| self.instance(step, node, links, values)).collect()
    }

    fn instance(&mut self, step: &RawStep, node: &Node, links: &Links, values: &Values) -> Option<PlannedStep> {
        let name = matrix::instance_name(&step.name, values);
        if !values.is_empty() {
            self.check(bounds::instance_name(&name), node.get("matrix"));
        }
        let parent = self.parent(step, node, links, values);
        let needs = self.needs(links, parent.as_ref());
        let command = self.command(step, node, values);
        let env = self.env(node, values);
        let spec = self.spec(step, node, values);
        let sources = self.sources(step, node, values);
        let retry = self.retry(step, node);
        let queue_timeout_ms = self.queue_timeout(step, node);
        let concurrency = self.concurrency(step, node, values);
        let cache_key = match &step.cache {
            Some(cache) => {
                let place = node.get("cache").and_then(|cache| cache.get("key"));
                let key = self.render(&cache.key, place, values)?;
                self.check(bounds::cache_key(&key), place)?;
                Some(key)
            }
            None => None,
        };
        let (mut spec, sources) = (spec?, sources?);
        (spec.command, spec.env) = (command?, env?);
        self.check(bounds::total(&spec), node.get("name"))?;
        Some(PlannedStep {
            name: StepName::from(name),
            parent: parent?,
            needs,
            spec,
            sources,
            retry: retry?,
            cache_key,
            snapshot: step.snapshot.unwrap_or_default(),
            keep_going: step.keep_going.or(self.raw.defaults.keep_going).unwrap_or_default(),
            priority: step.priority.or(self.raw.priority).unwrap_or_default(),
            queue_timeout_ms: queue_timeout_ms?,
            concurrency: concurrency?,
        })
    }

    /// The step's own rule, or that of the defaults: as a whole, for half of each would be nobody's.
    fn retry(&mut self, step: &RawStep, node: &Node) -> Option<Retry> {
        let (rule, place) = match (&step.retry, &self.raw.defaults.retry) {
            (Some(rule), _) => (rule, node.get("retry")),
            (None, Some(rule)) => (rule, self.root.get("defaults").and_then(|defaults| defaults.get("retry"))),
            (None, None) => return Some(Retry::default()),
        };
        let rule = match rule {
            RawRetry::Times(max) => Retry::times(*max),
            RawRetry::Rule(RawRetryRule { max, on, backoff }) => {
                let backoff = backoff.as_ref().map_or(Ok(0), |text| units::duration_ms(&text.0));
                let backoff = self.check(backoff, place.and_then(|rule| rule.get("backoff")));
                let places = place.and_then(|rule| rule.get("on")).map(Node::items).unwrap_or_default();
                let entries = on.iter().flatten().zip(places);
                let read: Vec<_> = entries.map(|(on, place)| self.check(RetryOn::read(&on.0), Some(place))).collect();
                Retry { max: *max, on: read.into_iter().collect::<Option<_>>()?, backoff_ms: backoff? }
            }
        };
        self.check(bounds::retry(&rule), place)?;
        Some(rule)
    }

    /// What the schema cannot say: keys that exclude each other.
    fn check_choices(&mut self, step: &RawStep, node: &Node) {
        let name = &step.name;
        let key = |key: &str| node.entry(key).map_or(node.head(), |entry| entry.key_span.clone());
        if step.run.is_some() && step.command.is_some() {
            let mistake = Mistake::new(format!("step `{name}` has both `run` and `command`"));
            self.mistakes.note(mistake.at(key("command"), "a program and its arguments").at(key("run"), "a script"));
        }
        if step.image.is_some() && step.from.is_some() {
            let mistake = Mistake::new(format!("step `{name}` has both `image` and `from`"));
            let mistake = mistake.at(key("from"), "the files of a step").at(key("image"), "the files of an image");
            self.mistakes.note(mistake.help("to wait for a step without its files, name it in `needs`"));
        }
        if step.shell.is_some() && step.run.is_none() && step.command.is_some() {
            let mistake = Mistake::new("`shell` has no meaning beside `command`").at(key("shell"), "only for `run`");
            self.mistakes.note(mistake);
        }
    }

    fn parent(&mut self, step: &RawStep, node: &Node, links: &Links, values: &Values) -> Option<Parent> {
        if step.from.is_some() {
            // A name that was not found has been noted.
            return self.parent_step(links.parent.as_ref()?, step, values).map(Parent::Step);
        }
        let default = self.root.get("defaults").and_then(|defaults| defaults.get("image"));
        let (image, place) = match (&step.image, &self.raw.defaults.image) {
            (Some(image), _) => (image, node.get("image")),
            (None, Some(image)) => (image, default),
            (None, None) => {
                let message = format!("step `{}` has neither `image` nor `from`, and `defaults` no `image`", step.name);
                self.mistakes.note(Mistake::new(message).at(node.head(), "starts from nothing").follows());
                return None;
            }
        };
        let image = self.render(image, place, values)?;
        self.check(bounds::image(&image), place)?;
        Some(Parent::Image(image))
    }

    fn parent_step(&mut self, link: &Link, step: &RawStep, values: &Values) -> Option<StepName> {
        let parent = &self.raw.steps[link.target.step()];
        let instance = match link.target {
            Target::Instance(_, instance) => instance,
            Target::Step(_) if parent.matrix.is_none() => 0,
            Target::Step(_) => {
                let instance = self.names.same_values(parent, values);
                if instance.is_none() {
                    self.mistakes.note(ambiguous_parent(link, step, parent, values));
                }
                instance?
            }
        };
        // None if the parent's own matrix is wrong, which has been noted.
        let parent_values = self.instances[link.target.step()].get(instance)?;
        Some(StepName::from(matrix::instance_name(&parent.name, parent_values)))
    }

    fn needs(&self, links: &Links, parent: Option<&Parent>) -> Vec<StepName> {
        let mut seen = HashSet::new();
        let mut needs = Vec::new();
        for link in &links.needs {
            let at = link.target.step();
            let instances = match link.target {
                Target::Step(_) => &self.instances[at][..],
                Target::Instance(_, instance) => &self.instances[at][instance..=instance],
            };
            for values in instances {
                let name = StepName::from(matrix::instance_name(&self.raw.steps[at].name, values));
                let is_parent = matches!(parent, Some(Parent::Step(parent)) if *parent == name);
                if !is_parent && seen.insert(name.clone()) {
                    needs.push(name);
                }
            }
        }
        needs
    }

    fn command(&mut self, step: &RawStep, node: &Node, values: &Values) -> Option<Command> {
        let (command, place) = match (&step.run, &step.command) {
            (Some(script), _) => {
                let default = || vec!["/bin/sh".to_owned(), "-e".to_owned()];
                let shell = step.shell.clone().or_else(|| self.raw.defaults.shell.clone()).unwrap_or_else(default);
                let place = node.get("run");
                (Command::Script { script: self.render(script, place, values)?, shell }, place)
            }
            (None, Some(words)) => {
                let place = node.get("command");
                let places = place.map(Node::items).unwrap_or_default();
                let argv: Option<Vec<_>> =
                    words.iter().zip(places).map(|(word, place)| self.render(&word.0, Some(place), values)).collect();
                (Command::Argv(argv?), place)
            }
            (None, None) => {
                let message = format!("step `{}` has neither `run` nor `command`", step.name);
                self.mistakes.note(Mistake::new(message).at(node.head(), "does nothing").follows());
                return None;
            }
        };
        self.check(bounds::command(&command), place)?;
        Some(command)
    }

    /// The pipeline's, over it the defaults', over it the step's own.
    fn env(&mut self, node: &Node, values: &Values) -> Option<IndexMap<String, String>> {
        let defaults = self.root.get("defaults").and_then(|defaults| defaults.get("env"));
        let layers = [self.root.get("env"), defaults, node.get("env")];
        let mut env = IndexMap::new();
        let mut fine = true;
        for entry in layers.into_iter().flatten().flat_map(Node::entries) {
            let Some(value) = self.render(entry.node.text(), Some(&entry.node), values) else {
                fine = false;
                continue;
            };
            fine &= self.check(bounds::env_value(&entry.key, &value), Some(&entry.node)).is_some();
            if let Err(message) = bounds::env_name(&entry.key) {
                fine = false;
                self.mistakes.note(Mistake::new(message).at(entry.key_span.clone(), "not this"));
            }
            env.insert(entry.key.clone(), value);
        }
        fine.then_some(env)
    }

    /// All of it but command and environment.
    fn spec(&mut self, step: &RawStep, node: &Node, values: &Values) -> Option<StepSpec> {
        let raw = self.raw;
        let defaults = &raw.defaults;
        let place = |key: &str| node.get(key).or_else(|| self.root.get("defaults")?.get(key));
        let (workdir_place, user_place) = (place("workdir"), place("user"));
        let (timeout_place, pool_place) = (place("timeout"), place("pool"));

        let workdir =
            self.optional(step.workdir.as_ref().or(defaults.workdir.as_ref()), workdir_place, values, |path| {
                bounds::absolute("`workdir`", path)
            });
        let user = step.user.as_ref().or(defaults.user.as_ref()).map(|Scalar(user)| user);
        let user = self.optional(user, user_place, values, bounds::user);
        let timeout_ms = match step.timeout.as_ref().or(defaults.timeout.as_ref()) {
            Some(text) => {
                let ms = units::duration_ms(&text.0).and_then(|ms| bounds::timeout_ms(ms).map(|()| ms));
                self.check(ms, timeout_place)
            }
            None => Some(TIMEOUT_DEFAULT_MS),
        };
        let pool = match step.pool.as_ref().or(defaults.pool.as_ref()) {
            Some(pool) => self.check(pool.parse::<PoolName>().map_err(|error| error.to_string()), pool_place),
            None => Some(PoolName::default()),
        };
        let output_max = match step.output_max.as_ref().or(defaults.output_max.as_ref()) {
            Some(text) => {
                let bytes = units::size_bytes(&text.0).and_then(|bytes| bounds::output_max(bytes).map(|()| bytes));
                self.check(bytes, place("output_max")).map(Some)
            }
            None => Some(None),
        };
        let resources = self.resources(step, node);
        Some(StepSpec {
            command: Command::Argv(Vec::new()),
            env: IndexMap::new(),
            workdir: workdir?,
            user: user?,
            sources: Vec::new(),
            timeout_ms: timeout_ms?,
            grace_ms: GRACE_MS,
            output_max: output_max?,
            exclusive: step.exclusive.unwrap_or_default(),
            resources: resources?,
            network: step.network.or(defaults.network).unwrap_or_default(),
            pool: pool?,
        })
    }

    fn resources(&mut self, step: &RawStep, node: &Node) -> Option<Resources> {
        let (own, default) = (&step.resources, &self.raw.defaults.resources);
        let place = |key: &str| {
            let own = node.get("resources").and_then(|resources| resources.get(key));
            own.or_else(|| self.root.get("defaults")?.get("resources")?.get(key))
        };
        let (memory_place, cpus_place) = (place("memory"), place("cpus"));
        let memory_bytes = match own.memory.as_ref().or(default.memory.as_ref()) {
            Some(text) => {
                let bytes = units::size_bytes(&text.0).and_then(|bytes| bounds::memory(bytes).map(|()| bytes));
                self.check(bytes, memory_place).map(Some)
            }
            None => Some(None),
        };
        let cpus = own.cpus.or(default.cpus);
        self.check(cpus.map_or(Ok(()), bounds::cpus), cpus_place)?;
        Some(Resources { memory_bytes: memory_bytes?, cpus, pids: own.pids.or(default.pids) })
    }

    fn sources(&mut self, step: &RawStep, node: &Node, values: &Values) -> Option<Vec<SourceDir>> {
        let place = node.get("sources");
        self.check(bounds::sources(step.sources.len()), place)?;
        let places = place.map(Node::items).unwrap_or_default();
        let mut sources = Vec::with_capacity(step.sources.len());
        for (source, place) in step.sources.iter().zip(places) {
            let path = self.render(&source.path, place.get("path"), values);
            let path = path.filter(|path| self.check(bounds::source_path(path), place.get("path")).is_some());
            let target = self.render(&source.target, place.get("target"), values);
            let check = |target: &str| bounds::absolute("the target", target);
            let target = target.filter(|target| self.check(check(target), place.get("target")).is_some());
            sources.push(path.zip(target).map(|(path, target)| SourceDir { path, target, blob: None }));
        }
        sources.into_iter().collect()
    }

    /// A value that may be missing: rendered and checked if there is one.
    #[expect(clippy::option_option, reason = "the outer one: whether it is right; the inner one: whether it is there")]
    fn optional(
        &mut self,
        text: Option<&String>,
        place: Option<&Node>,
        values: &Values,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Option<String>> {
        let Some(text) = text else { return Some(None) };
        let text = self.render(text, place, values)?;
        self.check(check(&text), place)?;
        Some(Some(text))
    }

    pub(super) fn render(&mut self, text: &str, place: Option<&Node>, values: &Values) -> Option<String> {
        let error = match self.templates.render(text, values) {
            Ok(text) => return Some(text),
            Err(error) => error,
        };
        let mut span = place.map_or(0..0, |place| place.span.clone());
        // Not found only where quotes or folding changed the text: then the value as a whole is shown.
        if let Some(at) = self.text.get(span.clone()).and_then(|source| source.find(&error.part)) {
            span = span.start + at..span.start + at + error.part.len();
        }
        let mistake = Mistake::new(error.message).at(span, "here");
        self.mistakes.note(match error.help {
            Some(help) => mistake.help(help),
            None => mistake,
        });
        None
    }

    pub(super) fn check<T>(&mut self, result: Result<T, String>, place: Option<&Node>) -> Option<T> {
        let span = place.map_or_else(|| self.root.head(), Node::head);
        result.map_err(|message| self.mistakes.note(Mistake::new(message).at(span, "not this"))).ok()
    }
}

/// `from` names a matrix step, and it does not follow which instance is meant.
fn ambiguous_parent(link: &Link, step: &RawStep, parent: &RawStep, values: &Values) -> Mistake {
    let matrix = parent.matrix.iter().flat_map(IndexMap::keys);
    let missing: Vec<_> = matrix.clone().filter(|key| !values.contains_key(*key)).map(String::as_str).collect();
    let message = if missing.is_empty() {
        let values: Vec<_> = matrix.filter_map(|key| Some(format!("{key}={}", values.get(key)?))).collect();
        format!("`{}` has no instance with {}, from which `{}` could go on", parent.name, values.join(", "), step.name)
    } else {
        let missing = missing.join("`, `");
        format!("`{}` has several instances, and the matrix of `{}` does not fix `{missing}`", parent.name, step.name)
    };
    let mut mistake = Mistake::new(message).at(link.span.clone(), "which instance's files?");
    let example = parent.matrix.iter().flatten().map(|(key, values)| Some(format!("{key}={}", values.first()?.0)));
    if let Some(example) = example.collect::<Option<Vec<_>>>() {
        mistake = mistake.help(format!(
            "give the step a matrix with the same names and values, or name one instance: `{}[{}]`",
            parent.name,
            example.join(",")
        ));
    }
    mistake
}
