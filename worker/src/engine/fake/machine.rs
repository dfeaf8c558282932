//! What runs in a fake Engine, whatever becomes of the worker that started it: commands, and the supervisors' timers.

use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::WorkerId;
use longshore_protocol::event::Usage;
use tokio::runtime::Handle;

use super::run::{OverAtLast, Run};
use super::shell::{Ended, Process};
use super::{FakeEngine, gone};
use crate::engine::{CommandSpec, ContainerName, Duty, Exit, ExitStatus};

/// What every fake command is said to have used: something, so that whoever loses it is seen.
const USAGE: Usage = Usage { user_ms: 1, system_ms: 1, max_rss_bytes: 1024 * 1024 };

impl FakeEngine {
    fn machine(&self) -> Handle {
        self.machine.clone().unwrap_or_else(Handle::current)
    }

    /// Runs a process on the machine, whatever becomes of the worker.
    pub(super) fn carry_out(&self, name: &ContainerName, command: &CommandSpec, run: &Arc<Run>, process: Process) {
        let (over, engine, name) = (OverAtLast(Arc::clone(run)), self.clone(), name.clone());
        let limit = command.limit;
        self.machine().spawn(async move {
            let run = Arc::clone(&over.0);
            let direct = process.is_init();
            let status = |ended| match ended {
                Ended::Exited(code) => ExitStatus::Code(code),
                // Without a supervisor a shell's way to say it is all that is told.
                Ended::Signaled(signal) if direct => ExitStatus::Code(128 + signal),
                Ended::Signaled(signal) => ExitStatus::Signal(signal),
            };
            let ran = async {
                let (ended, oom_killed) = process.run().await;
                run.end(Ok(Exit {
                    status: status(ended),
                    oom_killed,
                    ran: (!direct).then(|| run.ran()),
                    usage: (!direct).then_some(USAGE),
                    out_of_lease: run.is_out_of_lease(),
                }));
            };
            let ran = async {
                tokio::select! {
                    biased;
                    () = ran => {}
                    () = run.keep_lease() => {}
                }
            };
            if direct {
                ran.await;
            } else if tokio::time::timeout(limit, ran).await.is_err() {
                // P17: the supervisor ends itself with it.
                run.end(Ok(Exit {
                    status: ExitStatus::Signal(9),
                    oom_killed: false,
                    ran: Some(run.ran()),
                    usage: Some(USAGE),
                    out_of_lease: false,
                }));
                engine.kill(&name);
            }
        });
    }

    /// P17: a worker's containers outlive it for so long, unless its next incarnation adopts them.
    fn orphaned(&self, worker: WorkerId, incarnation: u64, orphan: Duration) {
        let engine = self.clone();
        self.machine().spawn(async move {
            tokio::time::sleep(orphan).await;
            let state = &mut *engine.lock();
            for (name, container) in &mut state.containers {
                if name.owner() == worker && container.incarnation == incarnation && !container.direct {
                    container.die(gone(name));
                }
            }
        });
    }

    /// Notices when the runtime of a worker that has just begun ends.
    pub(super) fn watch_over(&self, duty: &Duty, incarnation: u64) {
        let (engine, worker) = (self.clone(), duty.worker.clone());
        let pulse = Pulse { engine, worker, incarnation, orphan: duty.orphan };
        longshore_protocol::process::spawn(async move {
            let _pulse = pulse;
            std::future::pending::<()>().await;
        });
    }
}

/// Dropped when a worker's runtime ends.
struct Pulse {
    engine: FakeEngine,
    worker: WorkerId,
    incarnation: u64,
    orphan: Duration,
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.engine.orphaned(self.worker.clone(), self.incarnation, self.orphan);
    }
}
