//! The end of a batch: one transaction, and what is seen of it outside (P3).

use std::collections::BTreeSet;

use futures_util::future::join_all;
use longshore_protocol::RunId;
use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::{Broker, Delivery};
use longshore_protocol::output::Stream;
use tokio::time::Instant;

use super::inputs::Internal;
use super::writer::{Work, Writer};
use crate::core::entry::Entry;
use crate::metrics::{attempt_started, attempt_waited, entry_committed, steps_ready};
use crate::store::StoreError;
use crate::store::batch::{RunRow, StepRow};

impl<B: Broker> Writer<B> {
    pub(super) async fn commit(&mut self, mut work: Work, inputs: usize) -> Result<(), StoreError> {
        self.logs.write(&mut self.counters.change, &mut work.batch);
        self.write_views(&mut work);
        work.batch.outbox_done = std::mem::take(&mut self.confirmed);
        if breach::is(Breach::EffectsBeforeCommit) {
            self.publish(&mut work);
        }
        let begun = Instant::now();
        self.shared.store.commit(self.epoch, &work.batch).await?;
        self.committed_at = Instant::now();
        self.hands.renewed.send_replace(Some(begun));
        metrics::histogram!("longshore_store_commit_seconds").record(begun.elapsed());
        metrics::histogram!("longshore_store_batch_inputs").record(inputs as f64);
        self.committed(work).await;
        Ok(())
    }

    fn write_views(&mut self, work: &mut Work) {
        // Steps first: whoever reads changes in order sees a run settled after its last step.
        for (run, index) in &work.steps {
            if let Some(view) = self.core.step_view(*run, *index) {
                self.counters.change += 1;
                self.open.put(*run, *index, view.phase);
                work.batch.steps.push(StepRow { change: self.counters.change, run: *run, index: *index, view });
            }
        }
        let of_steps = work.steps.iter().map(|(run, _)| *run).filter(|run| self.core.is_done(*run));
        let runs: BTreeSet<RunId> = work.runs.iter().copied().chain(of_steps).collect();
        for run in runs {
            if let Some(summary) = self.core.run_summary(run) {
                self.counters.change += 1;
                let done = self.core.is_done(run);
                let pipeline_hash = work.hashes.remove(&run).unwrap_or_default();
                work.batch.runs.push(RunRow { change: self.counters.change, summary, pipeline_hash, done });
                work.done.extend(done.then_some(run));
            }
        }
    }

    /// The batch is on disk: only now is anything of it seen outside.
    pub(super) async fn committed(&mut self, mut work: Work) {
        self.publish(&mut work);
        for (reply, taken) in work.submits {
            // A client that went away is not told.
            reply.send(taken).ok();
        }
        for reply in work.cancels {
            reply.send(()).ok();
        }
        for reply in work.retries {
            reply.send(Ok(())).ok();
        }
        let of_steps = work.batch.steps.iter().map(|row| row.run);
        let of_runs = work.batch.runs.iter().map(|row| row.summary.run);
        let of_logs = work.batch.log_rows.iter().map(|row| row.claim.run);
        let of_closed = work.batch.log_ends.iter().map(|end| end.claim.run);
        let changed: BTreeSet<RunId> = of_steps.chain(of_runs).chain(of_logs).chain(of_closed).collect();
        self.shared.feed.committed(changed);
        for stream in [Stream::Stdout, Stream::Stderr] {
            metrics::counter!("longshore_output_bytes_total", "stream" => stream.word())
                .increment(work.output.of(stream));
        }
        metrics::counter!("longshore_log_chunks_total").increment(work.batch.chunks.len() as u64);
        for row in &work.batch.entries {
            entry_committed(&row.entry);
            if let Some(waited) = self.core.waited(&row.entry, row.at_ms) {
                attempt_waited(&waited);
            }
            if let Entry::Started { execution, attempt, .. } = &row.entry {
                let steps = work.batch.steps.iter().filter(|step| step.view.execution == *execution);
                steps
                    .flat_map(|step| &step.view.attempts)
                    .filter(|view| view.attempt == *attempt)
                    .for_each(attempt_started);
            }
        }
        for run in &work.done {
            self.core.forget(*run);
            self.logs.end_run(*run);
            // What was never claimed would fill the bound until nobody's output is asked for any more.
            self.early.retain(|(early, ..)| early != run);
            self.open.forget(*run);
        }
        self.seal();
        if work.workers_changed {
            self.show_state();
        }
        // At once: one behind the other each would cost the hop to the connection's task.
        for acked in join_all(work.acks.into_iter().map(Delivery::ack)).await {
            // On an error its connection is gone: it comes again and is a repeat then.
            if let Err(error) = acked {
                tracing::debug!(%error, "an ack did not arrive");
            }
        }
    }

    /// Hands the batch's messages to the publisher.
    fn publish(&self, work: &mut Work) {
        let rows = std::mem::take(&mut work.batch.outbox);
        let newest = self.hands.newest.borrow().next(rows);
        if let Some(newest) = newest {
            self.hands.newest.send_replace(newest);
        }
    }

    fn seal(&mut self) {
        for order in self.logs.to_seal() {
            let (store, files) = (self.shared.store.clone(), self.shared.chunks.clone());
            let internals = self.hands.internals.clone();
            let stop = self.hands.stop.clone();
            self.hands.tracker.spawn(async move {
                let sealing = async {
                    let chunks = files.seal(&*store, &order).await;
                    // Nobody listens once the reign is over: the log stays open, the next one seals it.
                    drop(internals.send(Internal::Sealed { claim: order.claim, chunks }).await);
                };
                stop.run_until_cancelled(sealing).await;
            });
        }
    }

    /// What the pages of workers, health and metrics show; every tick, and when a worker comes or goes.
    pub(super) fn show_state(&self) {
        let workers = self.core.workers();
        let alive: Vec<_> = workers.iter().filter(|worker| worker.alive).collect();
        let free: u32 = alive.iter().map(|worker| worker.slots_free).sum();
        let slots: u32 = alive.iter().map(|worker| worker.slots).sum();
        metrics::gauge!("longshore_workers", "state" => "alive").set(alive.len() as f64);
        metrics::gauge!("longshore_workers", "state" => "lost").set((workers.len() - alive.len()) as f64);
        metrics::gauge!("longshore_slots", "state" => "free").set(f64::from(free));
        metrics::gauge!("longshore_slots", "state" => "busy").set(f64::from(slots.saturating_sub(free)));
        for (pool, steps) in self.core.ready_by_pool() {
            steps_ready(pool.as_ref(), steps);
        }
        metrics::gauge!("longshore_outbox_rows").set(self.outstanding.len() as f64);
        let connected = if self.shared.broker.connected() { 1.0 } else { 0.0 };
        metrics::gauge!("longshore_broker_connected").set(connected);
        for (phase, steps) in self.open.by_phase() {
            metrics::gauge!("longshore_steps_open", "phase" => phase).set(f64::from(steps));
        }
        metrics::gauge!("longshore_runs_open").set(f64::from(self.open.runs()));
        self.shared.workers.send_replace(workers);
    }
}
