//! The coordinator around the core: a transaction per input, a crash between any two steps, a recovery by replay.

use longshore_coordinator::core::Core;
use longshore_coordinator::core::input::Input;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Epoch, SnapshotId};

use crate::worker::name;
use crate::world::World;

impl World {
    /// One input. The coordinator may crash before its transaction, or after it and before the message is acked:
    /// `false` says that the message will be delivered again.
    pub(crate) fn apply(&mut self, input: &Input) -> bool {
        let crash = self.dice.permille(self.faults.coordinator);
        let step = self.core.apply(input, self.now);
        self.applied += 1;
        if crash && self.dice.permille(300) {
            self.recover();
            return false;
        }
        self.checker.journalled(&step.entries, &self.workers);
        self.journal.extend(step.entries.into_iter().map(|entry| (entry, self.now)));
        self.outbox.extend(step.effects);
        if crash {
            self.recover();
            return self.dice.permille(500);
        }
        true
    }

    /// A new coordinator, from what is on disk.
    fn recover(&mut self) {
        self.core = self.replayed();
        self.lead();
    }

    fn replayed(&self) -> Core {
        let mut core = Core::new(self.config.clone());
        for (entry, at) in &self.journal {
            core.replay(entry, *at).unwrap_or_else(|illegal| panic!("{illegal}"));
        }
        core
    }

    pub(crate) fn lead(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
        let mut inputs = vec![Input::Lead { epoch: self.epoch }];
        for claim in self.core.open_logs() {
            let stdout = self.stored.get(&name(&claim)).copied().unwrap_or(0);
            inputs.push(Input::Stored { claim, offsets: Offsets { stdout, stderr: 0 } });
        }
        for input in inputs {
            let step = self.core.apply(&input, self.now);
            self.checker.journalled(&step.entries, &self.workers);
            self.journal.extend(step.entries.into_iter().map(|entry| (entry, self.now)));
            self.outbox.extend(step.effects);
        }
    }

    pub(crate) fn check(&self, faultless: bool) {
        assert_eq!(*self.replayed().state(), *self.core.state(), "replay does not give what was lived");
        self.checker.at_end(&self.stored, &self.core, faultless);
        if faultless {
            let ephemeral: Vec<&SnapshotId> = (self.engines.iter().flat_map(|engine| engine.snapshots.keys()))
                .filter(|snapshot| !snapshot.as_str().contains("cache:") && !self.checker.kept(snapshot))
                .collect();
            assert!(ephemeral.is_empty(), "snapshots that nobody needs: {ephemeral:?}");
        }
    }
}
