//! Makes a step's container: image or snapshot, limits, sources.

use std::future::Future;
use std::time::Instant;

use indexmap::IndexMap;
use longshore_protocol::broker::Broker;
use longshore_protocol::job::{Base, Job, Keep, Source};
use longshore_protocol::{InfraStage, Outcome, SnapshotId};

use crate::attempts::{Stop, StopReason};
use crate::context::Context;
use crate::engine::{ContainerSpec, Engine, EngineError};
use crate::job::{End, Task, phase_ended};
use crate::metrics::IMAGE_PULLS;

/// What a child is told whose parent's snapshot is not here; the coordinator knows this word.
pub const SNAPSHOT_LOST: &str = "snapshot_lost";

/// Between a source and the Engine: one read's worth.
const PIPE_BYTES: usize = 64 * 1024;

/// What there is to go on with.
pub(crate) enum Prepared {
    /// A container, not started, with its sources in it.
    Container,
    /// The key's snapshot is here: nothing has to run.
    Cached(SnapshotId),
}

/// Makes the container, or says how the attempt ended without one.
pub(crate) async fn prepare<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> Result<Prepared, End> {
    let began = Instant::now();
    let prepared = carry_out(context, task).await;
    task.phases.prepare_ms = phase_ended(began, "prepare");
    if let Err(End { outcome: Outcome::Infra { reason, .. }, .. }) = &prepared {
        // The log is where the user looks for the reason. A disk that fails shows when the spool is finished.
        let _ = task.spool.note(&format!("the step could not be prepared: {reason}")).await;
    }
    prepared
}

async fn carry_out<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> Result<Prepared, End> {
    // Locals of its own, so that `task` stays free for the notes.
    let Task { job, attempt, container, .. } = &*task;
    let mut stop = attempt.stop.clone();
    stopped(&stop)?;
    if let Keep::Cached { id } = &job.keep {
        let call = || context.engine.snapshot_exists(id);
        if context.retrying("snapshot_exists", call).await.map_err(infra)? {
            return Ok(Prepared::Cached(id.clone()));
        }
    }
    let image = base(context, &job.base, &mut stop).await?;
    stopped(&stop)?;
    let spec = ContainerSpec {
        name: container.clone(),
        image,
        argv: job.spec.command.argv(),
        env: environment(job),
        workdir: job.spec.workdir.clone(),
        user: job.spec.user.clone(),
        resources: job.spec.resources,
        network: job.spec.network,
    };
    create(context, &spec).await?;
    for source in &job.spec.sources {
        // Dropped half-way it leaves half the files in a container that is removed.
        let injected = unless_stopped(&mut stop, inject(context, &spec, source)).await;
        if let Err(end) = injected.and_then(|injected| injected) {
            return Err(End { may_run: true, ..end });
        }
    }
    Ok(Prepared::Container)
}

/// The image to make it from, which is then here.
async fn base<B: Broker, E: Engine>(context: &Context<B, E>, base: &Base, stop: &mut Stop) -> Result<String, End> {
    match base {
        Base::Image { reference } => {
            let pull = context.retrying("ensure_image", || context.engine.ensure_image(reference));
            let image = unless_stopped(stop, pull).await?;
            let result = if image.is_ok() { "ok" } else { "failed" };
            metrics::counter!(IMAGE_PULLS, "result" => result).increment(1);
            Ok(image.map_err(infra)?.0)
        }
        Base::Snapshot { id } => {
            let call = || context.engine.snapshot_exists(id);
            if context.retrying("snapshot_exists", call).await.map_err(infra)? {
                Ok(id.as_str().to_owned())
            } else {
                context.snapshots.remove(id);
                Err(End::infra(InfraStage::Prepare, SNAPSHOT_LOST))
            }
        }
    }
}

/// Never dropped half-way: the Engine might make the container after it was removed.
async fn create<B: Broker, E: Engine>(context: &Context<B, E>, spec: &ContainerSpec) -> Result<(), End> {
    let _gate = context.gates.start.acquire().await;
    let call = || async {
        match context.engine.create(spec).await {
            // Either a try that did not hear the answer made it, or an incarnation that nobody speaks for any more:
            // this attempt's record is ours alone, so nothing that counts runs in it.
            Err(EngineError::Exists { .. }) => {
                context.engine.destroy(&spec.name).await?;
                context.engine.create(spec).await
            }
            answer => answer,
        }
    };
    context.retrying("create", call).await.map_err(|error| match error {
        EngineError::NoImage { .. } if spec.image.starts_with("longshore/") => {
            End::infra(InfraStage::Prepare, SNAPSHOT_LOST)
        }
        // It may be there although no answer came.
        error => End { may_run: true, ..infra(error) },
    })
}

async fn inject<B: Broker, E: Engine>(
    context: &Context<B, E>,
    spec: &ContainerSpec,
    source: &Source,
) -> Result<(), End> {
    let call = || async {
        let (sink, tar) = tokio::io::duplex(PIPE_BYTES);
        let copied = async {
            let copied = context.blobs.copy(source, sink).await;
            copied.map_err(|error| EngineError::Input { reason: error.to_string() })
        };
        // Both must hold: a tar that was cut short may look whole to the Engine.
        tokio::try_join!(copied, context.engine.inject(&spec.name, &source.target, tar)).map(|_| ())
    };
    context.retrying("inject", call).await.map_err(infra)
}

/// The image's environment, then this, in which a later name replaces an earlier one.
fn environment(job: &Job) -> Vec<(String, String)> {
    let ours = [
        ("CI", "true".to_owned()),
        ("LONGSHORE_RUN", job.run.to_string()),
        ("LONGSHORE_STEP", job.step.to_string()),
        ("LONGSHORE_ATTEMPT", job.attempt.to_string()),
        ("LONGSHORE_POOL", job.spec.pool.to_string()),
    ];
    let mut all: IndexMap<String, String> = ours.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    all.extend(job.spec.env.clone());
    all.into_iter().collect()
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` wants")]
fn infra(error: EngineError) -> End {
    End::infra(InfraStage::Prepare, error.to_string())
}

fn stopped(stop: &Stop) -> Result<(), End> {
    stop.reason().map_or(Ok(()), |reason| Err(ended_early(reason)))
}

async fn unless_stopped<T>(stop: &mut Stop, work: impl Future<Output = T>) -> Result<T, End> {
    tokio::select! {
        biased;
        reason = stop.requested() => Err(ended_early(reason)),
        done = work => Ok(done),
    }
}

fn ended_early(reason: StopReason) -> End {
    End::stopped(reason, InfraStage::Prepare)
}
