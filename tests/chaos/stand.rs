//! What every row stands on: the services that `scripts/chaos.sh`, or a test, has started.

use std::path::PathBuf;

use longshore_tests::check::run_command;
use longshore_tests::fleet::Place;
use longshore_tests::services;

/// The services and how they are reached.
#[derive(Clone, Debug)]
pub(crate) struct Stand {
    /// Where the services keep their files.
    pub(crate) dir: PathBuf,
    /// RabbitMQ, from here.
    pub(crate) amqp: String,
    /// The first two numbers of the addresses of the cables between here and the Engines' namespaces; none within
    /// `make test`, where nobody's packets are dropped.
    cables: Option<String>,
}

impl Stand {
    pub(crate) fn find() -> Self {
        Self {
            dir: services::dir(),
            amqp: services::env("LONGSHORE_TEST_AMQP"),
            cables: std::env::var("LONGSHORE_CHAOS_CABLES").ok(),
        }
    }

    /// A line of the services' own, as it is now: process ids change.
    pub(crate) fn now(&self, name: &str) -> String {
        services::read_env(&self.dir).remove(name).unwrap_or_else(|| panic!("scripts/services.sh names no {name}"))
    }

    /// The process of one of them.
    pub(crate) fn pid(&self, service: &str) -> u32 {
        let name = format!("LONGSHORE_TEST_{}_PID", service.to_uppercase().replace('-', "_"));
        self.now(&name).parse().expect("a process id")
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, service: &str) {
        services::script(&["kill", &self.dir.display().to_string(), service]);
    }

    /// Starts it again, and waits until it answers.
    pub(crate) fn start(&self, service: &str) {
        services::script(&["start", &self.dir.display().to_string(), service]);
    }

    /// Asks the broker's node itself.
    pub(crate) fn rabbitmqctl(&self, args: &[&str]) -> String {
        run_command(&self.now("LONGSHORE_TEST_RABBITMQCTL"), args)
    }

    /// The Engine of that number.
    pub(crate) fn engine(&self, number: u8) -> String {
        self.now(&format!("LONGSHORE_TEST_DOCKER_{number}"))
    }

    /// RabbitMQ's port.
    pub(crate) fn amqp_port(&self) -> String {
        self.amqp.rsplit(':').next().expect("an address has a port").trim_end_matches('/').to_owned()
    }

    /// The network namespace of an Engine and the broker's address there, where there is a cable.
    pub(crate) fn place(&self, engine: u8) -> Option<Place> {
        let cables = self.cables.as_ref()?;
        let net = PathBuf::from(format!("/run/netns/longshore-{}-{engine}", self.now("LONGSHORE_TEST_MARK")));
        let amqp = format!("amqp://guest:guest@{cables}.{engine}.1:{}", self.amqp_port());
        Some(Place { net, amqp })
    }
}
