//! Makes a step's container: image, snapshot or its parent's parked container (P19); limits, sources.

use std::future::Future;

use indexmap::IndexMap;
use longshore_protocol::broker::Broker;
use longshore_protocol::job::{Base, Job, Keep, Source};
use longshore_protocol::outcome::SNAPSHOT_LOST;
use longshore_protocol::{Fence, InfraStage, Outcome, SnapshotId};
use tokio::time::Instant;

use crate::attempts::{Stop, StopReason};
use crate::context::Context;
use crate::disk::records::{AttemptKey, Parked};
use crate::engine::{ContainerName, ContainerSpec, Created, Engine, EngineError};
use crate::exclusive;
use crate::job::{End, Task, phase_ended};
use crate::metrics::{IMAGE_PULLS, PARENTS};
use crate::parked::{self, Taken};

/// Between a source and the Engine: one read's worth.
const PIPE_BYTES: usize = 64 * 1024;

/// What there is to go on with.
pub(crate) enum Prepared {
    /// A container in which no command runs, with its sources in it.
    Container,
    /// The key's snapshot is here: nothing has to run.
    Cached(SnapshotId),
}

/// What a container is made from.
enum From {
    /// An image or a snapshot, which is here.
    Image(String),
    /// None is made: it goes on in this one.
    Taken(Box<Parked>),
}

/// Makes the container, or says how the attempt ended without one.
pub(crate) async fn prepare<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> Result<Prepared, End> {
    let began = Instant::now();
    let prepared = carry_out(context, task).await;
    // Also where it came to nothing: others must not wait for it.
    context.attempts.has_base(task.attempt.key);
    ended(task, began, prepared).await
}

/// P10: puts the sources (again) into the container that it took before the worker's restart.
pub(crate) async fn prepare_taken<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> Result<(), End> {
    let began = Instant::now();
    let prepared = sources(context, task).await;
    ended(task, began, prepared).await
}

async fn ended<T>(task: &mut Task, began: Instant, prepared: Result<T, End>) -> Result<T, End> {
    task.phases.prepare_ms = phase_ended(began, "prepare");
    if let Err(End { outcome: Outcome::Infra { reason, .. }, .. }) = &prepared {
        // The log is where the user looks for the reason.
        task.note(&format!("the step could not be prepared: {reason}")).await;
    }
    prepared
}

async fn carry_out<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> Result<Prepared, End> {
    let mut stop = task.attempt.stop.clone();
    stopped(&stop)?;
    exclusive::possible(context, &task.job).await?;
    if let Keep::Cached { id } = &task.job.keep {
        let call = || context.engine.snapshot_exists(id);
        if context.retrying("snapshot_exists", call).await.map_err(infra)? {
            return Ok(Prepared::Cached(id.clone()));
        }
    }
    let from = match task.job.base.clone() {
        Base::Image { reference } => From::Image(pull(context, &reference, &mut stop).await?),
        Base::Parent { execution, attempt, snapshot } => {
            let parent = Fence { execution, attempt, owner: context.id.clone() };
            parents(context, task, &parent, snapshot).await?
        }
    };
    match from {
        From::Taken(taken) => task.go_on_in(&taken),
        From::Image(image) => {
            stopped(&stop)?;
            let spec = ContainerSpec {
                name: task.container.clone(),
                image,
                command: task.command(),
                resources: task.job.spec.resources,
                network: task.job.spec.network,
                tenant: task.job.tenant.clone(),
            };
            let Created { volumes } = create(context, &spec).await?;
            // Once, where they come from; and only where somebody could miss them.
            let hands_on = task.job.keep != Keep::Nothing && matches!(task.job.base, Base::Image { .. });
            if hands_on && !volumes.is_empty() {
                let volumes = volumes.join(", ");
                task.note(&format!("the image declares VOLUMEs: what is in {volumes} is not handed on")).await;
            }
        }
    }
    sources(context, task).await?;
    Ok(Prepared::Container)
}

async fn pull<B: Broker, E: Engine>(context: &Context<B, E>, reference: &str, stop: &mut Stop) -> Result<String, End> {
    let pull = context.retrying("ensure_image", || context.engine.ensure_image(reference));
    let image = unless_stopped(stop, pull).await?;
    let result = if image.is_ok() { "ok" } else { "failed" };
    metrics::counter!(IMAGE_PULLS, "result" => result).increment(1);
    Ok(image.map_err(infra)?.0)
}

/// What a parent left: its parked container, else its files under any of the names that they may have.
async fn parents<B: Broker, E: Engine>(
    context: &Context<B, E>,
    task: &mut Task,
    parent: &Fence,
    snapshot: Option<SnapshotId>,
) -> Result<From, End> {
    let key = AttemptKey::new(parent.execution, parent.attempt);
    let taken = parked::take(context, &task.attempt, &task.job, key).await;
    let files = match taken.map_err(|error| End::infra(InfraStage::Prepare, error.to_string()))? {
        Taken::Container(parked) => {
            metrics::counter!(PARENTS, "found" => "parked").increment(1);
            return Ok(From::Taken(parked));
        }
        Taken::Files(id) => Some(id),
        Taken::Nothing { because } => {
            if let Some(because) = because {
                task.note(&format!("a container of the step's own, not its parent's: {because}")).await;
            }
            None
        }
    };
    // The worker may have committed it since it told what it left.
    for id in files.into_iter().chain(snapshot).chain([SnapshotId::ephemeral(parent)]) {
        let call = || context.engine.snapshot_exists(&id);
        if context.retrying("snapshot_exists", call).await.map_err(infra)? {
            metrics::counter!(PARENTS, "found" => "snapshot").increment(1);
            return Ok(From::Image(id.as_str().to_owned()));
        }
        context.snapshots.remove(&id);
    }
    metrics::counter!(PARENTS, "found" => "lost").increment(1);
    Err(End::infra(InfraStage::Prepare, SNAPSHOT_LOST))
}

/// Never dropped half-way: the Engine might make the container after it was removed.
async fn create<B: Broker, E: Engine>(context: &Context<B, E>, spec: &ContainerSpec) -> Result<Created, End> {
    context.tidying.uses(&spec.name);
    let call = || async {
        let gate = context.gates.start.enter().await;
        let created = match context.engine.create(spec).await {
            // Either a try that did not hear the answer made it, or an incarnation that nobody speaks for any more:
            // this attempt's record is ours alone, so nothing that counts runs in it.
            Err(EngineError::Exists { .. }) => {
                context.engine.destroy(&spec.name).await?;
                context.engine.create(spec).await
            }
            answer => answer,
        };
        gate.done(&created);
        created
    };
    context.retrying("create", call).await.map_err(|error| match error {
        EngineError::NoImage { .. } if spec.image.starts_with("longshore/") => {
            End::infra(InfraStage::Prepare, SNAPSHOT_LOST)
        }
        // It may be there although no answer came.
        error => End { may_run: true, ..infra(error) },
    })
}

/// Dropped half-way, this leaves half the files in a container that is removed.
async fn sources<B: Broker, E: Engine>(context: &Context<B, E>, task: &Task) -> Result<(), End> {
    let mut stop = task.attempt.stop.clone();
    let Task { container, job, .. } = task;
    for source in &job.spec.sources {
        let injected = unless_stopped(&mut stop, inject(context, container, job.spec.user.as_deref(), source)).await;
        if let Err(end) = injected.and_then(|injected| injected) {
            return Err(End { may_run: true, ..end });
        }
    }
    Ok(())
}

async fn inject<B: Broker, E: Engine>(
    context: &Context<B, E>,
    container: &ContainerName,
    user: Option<&str>,
    source: &Source,
) -> Result<(), End> {
    let call = || async {
        let (sink, tar) = tokio::io::duplex(PIPE_BYTES);
        let copied = async {
            let copied = context.blobs.copy(source, sink).await;
            copied.map_err(|error| EngineError::Input { reason: error.to_string() })
        };
        // Both must hold: a tar that was cut short may look whole to the Engine.
        tokio::try_join!(copied, context.engine.inject(container, user, &source.target, tar)).map(|_| ())
    };
    context.retrying("inject", call).await.map_err(infra)
}

/// The image's environment, then this, in which a later name replaces an earlier one.
pub(crate) fn environment(job: &Job) -> Vec<(String, String)> {
    let ours = [
        ("CI", "true".to_owned()),
        ("LONGSHORE_RUN", job.run.to_string()),
        ("LONGSHORE_STEP", job.step.to_string()),
        ("LONGSHORE_ATTEMPT", job.attempt.to_string()),
        ("LONGSHORE_POOL", job.spec.pool.to_string()),
    ];
    let mut all: IndexMap<String, String> = ours.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    all.extend(job.spec.env.clone());
    if job.spec.exclusive {
        // P18: last, because what trusts it must not be told another one.
        all.insert("LONGSHORE_FENCE".to_owned(), job.attempt.to_string());
    }
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
