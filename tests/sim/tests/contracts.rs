//! The simulated broker and the simulated store keep what the real ones keep: an untested fake lies.

// Modules of one test are nobody's interface.
#![allow(unreachable_pub)]
// A panic is how a test says no, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "../../../protocol/tests/contract/mod.rs"]
mod contract;

use std::sync::Arc;
use std::time::Duration;

use contract::Site;
use longshore_coordinator::store::Store;
use longshore_sim::broker::{SimBroker, SimClient};
use longshore_sim::dice::Dice;
use longshore_sim::store::SimDatabase;
use longshore_sim::world::{Noise, World};
use longshore_tests::store_contract::Place;

fn calm() -> World {
    World::new(Dice::new(1), Noise::default(), false)
}

impl Site for SimClient {
    fn another(&self) -> Self {
        self.broker().client(None)
    }
}

/// Makes each function a test of the simulated broker.
macro_rules! of_the_broker {
    ($($module:ident: $($name:ident),+;)+) => {
        mod broker {
            $($(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    let broker = super::SimBroker::new(super::calm()).client(None);
                    crate::contract::run(broker, crate::contract::$module::$name).await;
                }
            )+)+
        }
    };
}

contract::every_promise!(of_the_broker);

struct Simulated(SimDatabase);

impl Place for Simulated {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.0.connect(None))
    }

    async fn crash(&self, store: Arc<dyn Store>) {
        drop(store);
    }

    async fn pass(&self, time: Duration) -> Duration {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
        time
    }
}

mod store {
    longshore_tests::store_contract!(super::Simulated(super::SimDatabase::new(super::calm())));
}
