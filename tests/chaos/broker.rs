//! What is done to RabbitMQ.

use std::net::TcpStream;

use crate::stand::Stand;

/// The service's name.
pub(crate) const NAME: &str = "rabbitmq";

/// For how long its node has been up.
pub(crate) fn uptime_secs(stand: &Stand) -> f64 {
    let millis = stand.rabbitmqctl(&["eval", "element(1, erlang:statistics(wall_clock))."]);
    millis.trim().parse::<f64>().expect("milliseconds") / 1000.0
}

/// Whether somebody listens on its port.
pub(crate) fn listens(stand: &Stand) -> bool {
    TcpStream::connect(("127.0.0.1", stand.amqp_port().parse().expect("a port"))).is_ok()
}

/// Whether it is in its memory alarm.
pub(crate) fn is_in_alarm(stand: &Stand) -> bool {
    stand.rabbitmqctl(&["eval", "rabbit_alarm:get_alarms()."]).contains("memory")
}

/// How many connections it has stopped reading.
pub(crate) fn blocked(stand: &Stand) -> usize {
    let states = stand.rabbitmqctl(&["list_connections", "--silent", "state"]);
    states.lines().filter(|state| matches!(state.trim(), "blocked" | "blocking")).count()
}

/// Ends it in order, and waits until it is gone.
pub(crate) fn stop(stand: &Stand) {
    stand.rabbitmqctl(&["shutdown"]);
}
