//! Rows for tests, each with as little in it as can be.

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::view::{RunOutcome, RunSummary, StepPhase, StepView};
use longshore_coordinator::store::batch::{
    Batch, EntryRow, LogEnd, LogRow, NewLog, OutboxAbout, OutboxRow, RowContent, RunRow, StepRow,
};
use longshore_coordinator::store::packed::pack;
use longshore_protocol::event::Claim;
use longshore_protocol::output::{Ending, Offsets, Run, Stream};
use longshore_protocol::topology::Address;
use longshore_protocol::{Attempt, ExecutionId, Incarnation, PoolName, RunId, WorkerId};

fn worker() -> WorkerId {
    "w1".parse().expect("a worker's name")
}

/// A worker was heard up to a number.
pub fn heard(seq: u64, number: u64) -> EntryRow {
    let entry = Entry::Heard { worker: worker(), incarnation: Incarnation { start: 1, nonce: 1 }, number };
    EntryRow { seq, at_ms: seq, entry }
}

/// Another entry about the same worker.
pub fn lost(seq: u64) -> EntryRow {
    EntryRow { seq, at_ms: seq, entry: Entry::LeaseEnded { worker: worker() } }
}

/// An entry about a run.
pub fn settled(seq: u64, run: RunId) -> EntryRow {
    EntryRow { seq, at_ms: seq, entry: Entry::RunSettled { run, outcome: RunOutcome::Passed } }
}

/// A batch with nothing but these entries.
pub fn entries(entries: Vec<EntryRow>) -> Batch {
    Batch { entries, ..Batch::default() }
}

/// A batch with nothing but these messages.
pub fn outbox(outbox: Vec<OutboxRow>) -> Batch {
    Batch { outbox, ..Batch::default() }
}

/// A message whose body is no text.
///
/// # Panics
/// If the id does not fit a byte.
pub fn message(id: i64) -> OutboxRow {
    let about = OutboxAbout::Job { queue: JobQueue::Pool(PoolName::default()), claim: claim(RunId::new()) };
    let to = Address { exchange: "jobs".to_owned(), routing_key: "pool".to_owned() };
    OutboxRow { id, about, to, body: vec![0, 255, u8::try_from(id).expect("a small id")] }
}

/// A run as it is listed.
pub fn summary(run: RunId, submitted_at_ms: u64) -> RunSummary {
    RunSummary {
        run,
        name: "n".to_owned(),
        tenant: "default".to_owned(),
        submitted_at_ms,
        settled_at_ms: None,
        retried_at_ms: None,
        retries: 0,
        outcome: None,
        cancelling: false,
        steps: 1,
        steps_settled: 0,
    }
}

/// A run's row.
pub fn run_row(change: u64, run: RunId, done: bool) -> RunRow {
    RunRow { change, summary: summary(run, 1), pipeline_hash: "h".to_owned(), done }
}

/// A step's row.
pub fn step_row(change: u64, run: RunId, index: usize, phase: StepPhase) -> StepRow {
    let step = format!("s{index}").as_str().into();
    let execution = ExecutionId::of_step(run, &step);
    let (attempts, remakes) = (vec![], vec![]);
    let view = StepView { step, execution, phase, outcome: None, cancelling: false, cached: false, attempts, remakes };
    StepRow { change, run, index, view }
}

/// The first attempt of some execution of this run.
pub fn claim(run: RunId) -> Claim {
    Claim { run, execution: ExecutionId(uuid::Uuid::now_v7()), attempt: Attempt(1) }
}

/// A log begins.
pub fn new_log(claim: &Claim) -> NewLog {
    NewLog { claim: claim.clone(), step: "s0".into() }
}

/// Lines of stdout that begin at an offset.
pub fn lines(offset: u64, text: &str) -> Run {
    Run { stream: Stream::Stdout, offset, at_ms: 1, ending: Ending::Newline, bytes: text.as_bytes().to_vec() }
}

/// Those lines as a row.
pub fn log_row(change: u64, claim: &Claim, first_line: u64, offset: u64, text: &str) -> LogRow {
    let lines_in = text.lines().count() as u64;
    let content = RowContent::Lines { lines: lines_in, data: pack(&[lines(offset, text)]) };
    LogRow { change, claim: claim.clone(), first_line, content }
}

/// A log holds so many lines and bytes of stdout.
pub fn log_end(claim: &Claim, stdout: u64, lines: u64, closed: bool) -> LogEnd {
    LogEnd { claim: claim.clone(), stored: Offsets { stdout, stderr: 0 }, lines, closed }
}
