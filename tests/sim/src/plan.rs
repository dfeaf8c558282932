//! A schedule as a value: drawn from a seed, and made smaller where it fails.

use std::fmt::Write as _;

use longshore_protocol::RunId;
use uuid::Uuid;

use crate::dice::Dice;
use crate::world::Noise;

/// Faults are let loose for so long; then the world heals.
pub const FAULTS_MS: u64 = 32_000;

/// The last of them strikes before this: early enough that a lease can end.
const LAST_FAULT_MS: u64 = 18_000;

/// The one concurrency group.
const GROUP: &str = "one at a time";

/// One schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of all that is drawn while it goes on.
    pub seed: u64,
    pub runs: Vec<RunPlan>,
    pub coordinators: usize,
    /// Slots of each worker.
    pub workers: Vec<u32>,
    pub noise: Noise,
    pub faults: Vec<(u64, Fault)>,
}

/// A run, and what its user does.
#[derive(Clone, Debug)]
pub struct RunPlan {
    pub id: RunId,
    pub submitted_ms: u64,
    pub cancelled_ms: Option<u64>,
    pub timeout_s: Option<u64>,
    pub steps: Vec<StepPlan>,
}

/// A step. What its command writes and how it ends is known beforehand.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a line of the pipeline's")]
pub struct StepPlan {
    pub name: String,
    /// Index of the step whose files it goes on with.
    pub from: Option<usize>,
    pub needs: Vec<usize>,
    /// Lines on standard output and standard error.
    pub lines: u64,
    pub errors: u64,
    pub runs_ms: u64,
    /// Its first so many attempts end with this code.
    pub fails: u32,
    pub code: u8,
    pub retries: u32,
    pub keep_going: bool,
    pub always: bool,
    pub cached: bool,
    pub exclusive: bool,
    /// Of all that are, one at a time is carried out.
    pub grouped: bool,
    pub timeout_s: u64,
}

/// Something that happens to a part of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it is started again after so many ms.
    KillCoordinator {
        which: usize,
        ms: u64,
    },
    KillWorker {
        which: usize,
        ms: u64,
    },
    /// Its host goes down with everything that runs on it.
    CrashHost {
        which: usize,
        ms: u64,
    },
    /// SIGSTOP, and SIGCONT after so many ms.
    FreezeCoordinator {
        which: usize,
        ms: u64,
    },
    FreezeWorker {
        which: usize,
        ms: u64,
    },
    /// What is sent to it, or what it sends, or both, gets lost.
    PartitionCoordinator {
        which: usize,
        hears: bool,
        speaks: bool,
        ms: u64,
    },
    PartitionWorker {
        which: usize,
        hears: bool,
        speaks: bool,
        ms: u64,
    },
    /// Somebody sets the clock of its host.
    ClockOfCoordinator {
        which: usize,
        by_ms: i64,
    },
    ClockOfWorker {
        which: usize,
        by_ms: i64,
    },
    RestartBroker {
        ms: u64,
    },
    MemoryAlarm {
        ms: u64,
    },
    /// No transaction, no look.
    StoreDown {
        ms: u64,
    },
    RestartEngine {
        which: usize,
    },
    /// Every call of the Engine takes a second and more.
    SlowHost {
        which: usize,
        ms: u64,
    },
    /// The next call of this kind fails.
    EngineError {
        which: usize,
        call: usize,
    },
    /// Somebody empties the queues of one kind.
    Purge {
        kind: usize,
    },
    /// Somebody deletes them.
    Delete {
        kind: usize,
    },
    /// SIGTERM; it is started again so many ms after it has ended.
    Drain {
        which: usize,
        ms: u64,
    },
}

/// Every kind of fault that a schedule can have, noise included.
pub const KINDS: [&str; 30] = [
    "message lost before its confirm",
    "confirm lost",
    "message repeated",
    "message delayed",
    "ack lost",
    "transaction failed",
    "transaction without an answer",
    "slow disk under the store",
    "killed between two effects",
    "coordinator killed",
    "worker killed",
    "host crashed",
    "coordinator frozen",
    "worker frozen",
    "coordinator cut off",
    "coordinator cut off one way",
    "worker cut off",
    "worker cut off one way",
    "coordinator's clock set",
    "worker's clock set",
    "broker restarted",
    "broker's memory alarm",
    "store down",
    "engine restarted",
    "slow host",
    "engine error",
    "queues emptied",
    "queues deleted",
    "worker drained",
    "run cancelled",
];

impl Fault {
    /// For the table.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillCoordinator { .. } => "coordinator killed",
            Self::KillWorker { .. } => "worker killed",
            Self::CrashHost { .. } => "host crashed",
            Self::FreezeCoordinator { .. } => "coordinator frozen",
            Self::FreezeWorker { .. } => "worker frozen",
            Self::PartitionCoordinator { hears: false, speaks: false, .. } => "coordinator cut off",
            Self::PartitionCoordinator { .. } => "coordinator cut off one way",
            Self::PartitionWorker { hears: false, speaks: false, .. } => "worker cut off",
            Self::PartitionWorker { .. } => "worker cut off one way",
            Self::ClockOfCoordinator { .. } => "coordinator's clock set",
            Self::ClockOfWorker { .. } => "worker's clock set",
            Self::RestartBroker { .. } => "broker restarted",
            Self::MemoryAlarm { .. } => "broker's memory alarm",
            Self::StoreDown { .. } => "store down",
            Self::RestartEngine { .. } => "engine restarted",
            Self::SlowHost { .. } => "slow host",
            Self::EngineError { .. } => "engine error",
            Self::Purge { .. } => "queues emptied",
            Self::Delete { .. } => "queues deleted",
            Self::Drain { .. } => "worker drained",
        }
    }

    fn thrown(dice: &mut Dice, coordinators: u64, workers: u64) -> Self {
        let worker = index(dice.below(workers));
        let coordinator = index(dice.below(coordinators));
        // Some shorter than a lease, some longer.
        let ms = if dice.permille(600) { dice.between(100, 6_000) } else { dice.between(6_000, 30_000) };
        let by_ms = |dice: &mut Dice| {
            let by = i64::try_from(dice.between(1_000, 7_200_000)).unwrap_or_default();
            if dice.permille(500) { by } else { -by }
        };
        let (hears, speaks) = *dice.one_of(&[(false, false), (false, true), (true, false)]);
        match dice.below(21) {
            0 => Self::KillCoordinator { which: coordinator, ms },
            1 | 2 => Self::KillWorker { which: worker, ms },
            3 => Self::CrashHost { which: worker, ms },
            4 | 19 => Self::FreezeCoordinator { which: coordinator, ms },
            5 | 6 => Self::FreezeWorker { which: worker, ms },
            7 => Self::PartitionCoordinator { which: coordinator, hears, speaks, ms },
            8 | 9 => Self::PartitionWorker { which: worker, hears, speaks, ms },
            10 => Self::ClockOfCoordinator { which: coordinator, by_ms: by_ms(dice) },
            11 => Self::ClockOfWorker { which: worker, by_ms: by_ms(dice) },
            12 => Self::RestartBroker { ms: ms.min(12_000) },
            13 => Self::MemoryAlarm { ms },
            14 => Self::StoreDown { ms: ms.min(12_000) },
            15 => Self::RestartEngine { which: worker },
            16 if dice.permille(500) => Self::SlowHost { which: worker, ms },
            16 => Self::EngineError { which: worker, call: index(dice.below(64)) },
            17 => Self::Delete { kind: index(dice.below(6)) },
            18 => Self::Purge { kind: index(dice.below(6)) },
            _ => Self::Drain { which: worker, ms },
        }
    }
}

pub fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or_default()
}

impl Plan {
    /// What a seed comes to.
    pub fn thrown(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let coordinators = 1 + index(dice.below(2));
        let workers: Vec<u32> = (0..=dice.below(3)).map(|_| if dice.permille(600) { 1 } else { 2 }).collect();
        let runs = (0..=dice.below(2)).map(|n| RunPlan::thrown(&mut dice, n)).collect();
        // One in eight has no fault at all: then nothing is the fleet's fault either.
        let quiet = dice.permille(125);
        let noise = if quiet { Noise::default() } else { noise(&mut dice) };
        let count = if quiet { 0 } else { dice.below(8) };
        let mut faults: Vec<_> = (0..count)
            .map(|_| {
                let at = dice.below(LAST_FAULT_MS);
                (at, Fault::thrown(&mut dice, coordinators as u64, workers.len() as u64))
            })
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        Self { seed: dice.draw(), runs, coordinators, workers, noise, faults }
    }

    /// Whether anything is wrong in it.
    pub fn is_quiet(&self) -> bool {
        self.noise == Noise::default() && self.faults.is_empty()
    }
}

/// Each kind is there or not, so that schedules differ in kind and not in degree alone.
fn noise(dice: &mut Dice) -> Noise {
    let mut some = |most: u64| if dice.permille(250) { 1 + dice.below(most) } else { 0 };
    Noise {
        publish_lost: some(80),
        confirm_lost: some(80),
        repeated: some(200),
        ack_lost: some(80),
        delayed: some(100),
        commit_failed: some(30),
        commit_unanswered: some(30),
        commit_slow: some(40),
        killed: some(14),
    }
}

impl RunPlan {
    fn thrown(dice: &mut Dice, n: u64) -> Self {
        let count = index(dice.between(1, 5));
        let steps = (0..count).map(|at| StepPlan::thrown(dice, at)).collect();
        let id = RunId(Uuid::from_u64_pair(dice.draw() & 0xffff_ffff_ffff_0fff | 0x7000, dice.draw() >> 2 | 1 << 63));
        let submitted_ms = if n == 0 { dice.below(2_000) } else { dice.below(8_000) };
        let cancelled_ms = dice.permille(120).then(|| submitted_ms + dice.between(1, 20_000));
        let timeout_s = dice.permille(80).then(|| dice.between(3, 20));
        Self { id, submitted_ms, cancelled_ms, timeout_s, steps }
    }

    /// As a user writes it.
    pub fn file(&self) -> String {
        let steps = self.steps.iter().map(|step| step.json(self)).collect::<Vec<_>>();
        let mut file = serde_json::json!({ "name": "sim", "steps": steps });
        if let Some(timeout_s) = self.timeout_s {
            file["timeout"] = format!("{timeout_s}s").into();
        }
        file.to_string()
    }
}

impl StepPlan {
    fn thrown(dice: &mut Dice, at: usize) -> Self {
        // Chains as often as forks: only what has one child is parked without a commit.
        let from = (at > 0 && dice.permille(700))
            .then(|| if dice.permille(600) { at - 1 } else { index(dice.below(at as u64)) });
        let needs = (0..at).filter(|before| Some(*before) != from && dice.permille(150)).collect();
        let exclusive = dice.permille(100);
        let slow = dice.permille(if exclusive { 600 } else { 150 });
        let fails = if dice.permille(200) { 1 + u32::try_from(dice.below(3)).unwrap_or(0) } else { 0 };
        Self {
            name: format!("s{at}"),
            from,
            needs,
            lines: dice.below(4),
            errors: dice.below(2),
            runs_ms: if slow {
                dice.between(3_000, if exclusive { 20_000 } else { 10_000 })
            } else {
                dice.below(2_000)
            },
            fails,
            code: u8::try_from(dice.between(3, 120)).unwrap_or(3),
            // So that what is made again may fail where it had passed (P20).
            retries: if dice.permille(if fails > 0 { 600 } else { 150 }) { 2 } else { 0 },
            keep_going: dice.permille(150),
            always: dice.permille(100),
            cached: !exclusive && dice.permille(100),
            exclusive,
            grouped: dice.permille(150),
            timeout_s: if dice.permille(60) { 1 } else { 60 },
        }
    }

    /// The command: says who it is, shows what its ancestors left, leaves its own mark, works, and ends.
    pub fn script(&self) -> String {
        let mut script = String::new();
        let name = &self.name;
        let _ = writeln!(script, "cat /host");
        let _ = writeln!(script, "echo {name} begins");
        if self.from.is_some() {
            let _ = writeln!(script, "cat /chain");
        }
        let _ = writeln!(script, "echo {name} >> /chain");
        for line in 0..self.lines {
            let _ = writeln!(script, "echo {name} {line}");
        }
        let _ = writeln!(script, "sleep {}", self.runs_ms as f64 / 1_000.0);
        for line in 0..self.errors {
            let _ = writeln!(script, "echo {name} error {line} >&2");
        }
        let _ = writeln!(script, "echo {name} ends");
        for attempt in 1..=self.fails {
            let _ = writeln!(script, "[ \"$LONGSHORE_ATTEMPT\" != {attempt} ] || exit {}", self.code);
        }
        script
    }

    fn json(&self, run: &RunPlan) -> serde_json::Value {
        let mut step = serde_json::json!({
            "name": self.name,
            "run": self.script(),
            "needs": self.needs.iter().map(|at| run.steps[*at].name.as_str()).collect::<Vec<_>>(),
            "retry": self.retries,
            "keep_going": self.keep_going,
            "snapshot": if self.always { "always" } else { "auto" },
            "timeout": format!("{}s", self.timeout_s),
        });
        match self.from {
            Some(from) => step["from"] = run.steps[from].name.as_str().into(),
            None => step["image"] = "sim".into(),
        }
        if self.exclusive {
            step["exclusive"] = true.into();
        }
        if self.grouped {
            step["concurrency"] = GROUP.into();
        }
        if self.cached {
            step["cache"] = serde_json::json!({ "key": format!("{}-{}", run.id, self.name) });
        }
        step
    }
}
