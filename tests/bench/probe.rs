//! A worker in name only: how soon a heartbeat is heard.
//!
//! It holds an exclusive step (P18), so that the coordinator answers each of its heartbeats once it has handled it.

use std::time::{Duration, Instant};

use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker, Consumer, Outgoing};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{AttemptRecord, Claim, Event, EventMessage, Finished, Hello, Phase, Phases};
use longshore_protocol::heartbeat::{Heartbeat, HeartbeatMessage};
use longshore_protocol::job::Job;
use longshore_protocol::output::Offsets;
use longshore_protocol::topology::Topology;
use longshore_protocol::{EngineId, Incarnation, Outcome, PoolName, RunId, Shard, WorkerId, wire};
use longshore_tests::Fleet;

use crate::drive;
use crate::failure::{Failure, Result};

/// Of its one step nothing is ever run.
const STEP: &str =
    "name: probe\nsteps:\n  - {name: held, image: none, pool: probe, exclusive: true, command: [none]}\n";

/// Ten a second: more than a hundred workers send in the five seconds between theirs, and no load.
const EVERY: Duration = Duration::from_millis(100);

/// An answer that takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the [module](self).
pub(crate) struct Probe {
    broker: AmqpBroker,
    topology: Topology,
    worker: WorkerId,
    incarnation: Incarnation,
    control: Consumer,
    numbered: u64,
    run: RunId,
    claim: Claim,
}

impl Probe {
    /// Joins the fleet for the `start`th time, and holds its step: until a lease after its last heartbeat.
    pub(crate) async fn join(fleet: &Fleet, lease: Duration, start: u64) -> Result<Self> {
        let broker = AmqpBroker::new(fleet.amqp(), "probe")?;
        let topology = Topology::new(fleet.prefix(), lease);
        let (worker, pool): (WorkerId, PoolName) = ("probe".parse()?, "probe".parse()?);
        broker.declare(&topology.of_worker(&worker, &pool)).await?;
        let control = broker.consume(&topology.control(&worker), 16).await?;
        let mut jobs = broker.consume(&topology.pool_jobs(Shard(0), &pool), 1).await?;
        let run = drive::submit(fleet, STEP).await?;
        let incarnation = Incarnation { start, nonce: 1 };
        let claim = Claim {
            run,
            execution: longshore_protocol::ExecutionId::of_step(run, &"held".into()),
            attempt: longshore_protocol::Attempt::FIRST,
        };
        let mut probe = Self { broker, topology, worker, incarnation, control, numbered: 0, run, claim };
        let hello = Hello {
            engine: EngineId::from("none"),
            pool,
            slots: 1,
            version: "0".to_owned(),
            host: "probe".to_owned(),
            records: Vec::new(),
        };
        probe.report(Event::Hello(hello)).await?;
        let delivery = soon(jobs.next()).await?.ok_or_else(|| Failure::new("the broker was closed"))?;
        let job: Job = wire::decode(&delivery.body)?;
        probe.claim.attempt = job.attempt;
        probe.report(Event::Accepted(probe.claim.clone())).await?;
        delivery.ack().await?;
        jobs.cancel().await;
        probe.told(|control| matches!(control, Control::Go { .. })).await?;
        Ok(probe)
    }

    /// From the sending of a heartbeat until its answer is here, ms, for as long as it is asked for.
    pub(crate) async fn measure(&mut self, until: Instant) -> Result<Vec<f64>> {
        let (epoch, mut rounds) = (Instant::now(), Vec::new());
        let mut ticks = tokio::time::interval(EVERY);
        while Instant::now() < until {
            ticks.tick().await;
            let sent = Instant::now();
            let stamp_ms = u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.beat(stamp_ms).await?;
            self.told(|control| matches!(control, Control::Heard { stamp_ms: of, .. } if *of == stamp_ms)).await?;
            rounds.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(rounds)
    }

    /// Its step has passed, as far as anybody hears.
    pub(crate) async fn leave(mut self, fleet: &Fleet) -> Result<()> {
        let finished = Finished {
            claim: self.claim.clone(),
            outcome: Outcome::Passed,
            cached: false,
            output: Offsets::default(),
            snapshot: None,
            parked: false,
            phases: Phases::default(),
            usage: None,
        };
        self.report(Event::Finished(finished)).await?;
        drive::ends(fleet, self.run, Instant::now()).await?;
        self.broker.close().await;
        Ok(())
    }

    async fn report(&mut self, event: Event) -> Result<()> {
        self.numbered += 1;
        let (worker, incarnation, number) = (self.worker.clone(), self.incarnation, self.numbered);
        let body = wire::encode(&EventMessage { worker, incarnation, number, event });
        Ok(self.broker.publish(vec![Outgoing::new(self.topology.events(Shard(0)).address(), body)]).await?)
    }

    async fn beat(&self, stamp_ms: u64) -> Result<()> {
        let heartbeat = Heartbeat {
            worker: self.worker.clone(),
            incarnation: self.incarnation,
            engine: EngineId::from("none"),
            pool: "probe".parse()?,
            slots: 1,
            slots_free: 0,
            attempts: vec![AttemptRecord { claim: self.claim.clone(), phase: Phase::Running }],
            snapshots: Vec::new(),
            parked: Vec::new(),
            full: Vec::new(),
            stamp_ms,
            last_event: self.numbered,
            disk_free_bytes: None,
        };
        let body = wire::encode(&HeartbeatMessage::Heartbeat(heartbeat));
        Ok(self.broker.publish(vec![Outgoing::new(self.topology.heartbeats(Shard(0)).address(), body)]).await?)
    }

    async fn told(&mut self, wanted: impl Fn(&Control) -> bool) -> Result<()> {
        loop {
            let delivery = soon(self.control.next()).await?.ok_or_else(|| Failure::new("the broker was closed"))?;
            let messages: Vec<ControlMessage> = wire::decode_all(&delivery.body)?;
            delivery.ack().await?;
            if messages.iter().any(|message| wanted(&message.control)) {
                return Ok(());
            }
        }
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, future).await.map_err(|_| Failure::new("the coordinator does not answer the probe"))
}
