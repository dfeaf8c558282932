//! Wakes whoever follows a run when something of it was committed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use longshore_protocol::RunId;
use longshore_protocol::process::watch;

/// Followers by run. It says only *that* something was committed: followers read the store.
#[derive(Debug, Default)]
pub struct Feed {
    runs: Mutex<HashMap<RunId, watch::Sender<()>>>,
}

impl Feed {
    /// To be called *before* the first look at the store: what is committed between the look and the
    /// wait is then seen as a change, and nobody waits for what has already happened.
    pub fn subscribe(&self, run: RunId) -> watch::Receiver<()> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of runs that no longer change would stay for ever.
        runs.retain(|_, sender| !sender.is_closed());
        runs.entry(run).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// Something of these runs was committed.
    pub fn committed(&self, changed: impl IntoIterator<Item = RunId>) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for run in changed {
            let Some(sender) = runs.get(&run) else { continue };
            sender.send_replace(());
            if sender.is_closed() {
                runs.remove(&run); // nobody needs the entry
            }
        }
    }
}
