//! What both brokers promise. The fake passes what the real one passes: an untested fake lies.
//!
//! Every test of `contract/` runs against RabbitMQ and against memory; what can only go wrong on a
//! network is in `contract/outage.rs`.

// Modules of one test are nobody's interface.
#![allow(unreachable_pub)]
// A panic is how a test says no, in its helpers too.
#![allow(clippy::unwrap_used)]

mod contract;
#[path = "contract/outage.rs"]
mod outage;
#[path = "contract/proxy.rs"]
mod proxy;
#[path = "../../tests/services.rs"]
mod services;

use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::memory::MemoryBroker;

use contract::Site;

impl Site for MemoryBroker {
    fn another(&self) -> Self {
        MemoryBroker::another(self)
    }
}

impl Site for AmqpBroker {
    fn another(&self) -> Self {
        amqp_broker()
    }
}

fn amqp_uri() -> String {
    services::env("LONGSHORE_TEST_AMQP")
}

fn amqp_broker() -> AmqpBroker {
    AmqpBroker::new(&amqp_uri(), "contract").unwrap()
}

/// Makes each function a test of either broker.
macro_rules! contract {
    ($($module:ident: $($name:ident),+;)+) => {
        mod memory {
            $($(
                #[tokio::test]
                async fn $name() {
                    let broker = longshore_protocol::broker::memory::MemoryBroker::new();
                    crate::contract::run(broker, crate::contract::$module::$name).await;
                }
            )+)+
        }

        mod amqp {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let broker = crate::amqp_broker();
                    crate::contract::run(broker, crate::contract::$module::$name).await;
                }
            )+)+
        }
    };
}

contract::every_promise!(contract);
