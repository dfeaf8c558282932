//! What may be typed. `docs/cli.md` is its reference for people.

// The texts are shown in a terminal, where backticks and angle brackets would only be in the way.
#![allow(clippy::doc_markdown)]

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use longshore_protocol::{PoolName, RunId};
use longshore_worker::config::{DRAIN, ORPHAN, PARKED_FOR};

/// Runs steps in containers, on this machine or on a fleet of Docker hosts.
#[derive(Parser, Debug)]
#[command(name = "longshore", version, propagate_version = true, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 passed, 1 a step failed, 2 bad input, 3 infrastructure or no Docker, 130 cancelled."
)]
pub(crate) struct Cli {
    /// For people, or one JSON object a line
    #[arg(long, global = true, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// One object a line, for programs.
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a pipeline here: needs a Docker Engine and nothing else
    Run(RunArgs),
    /// Print the steps that a pipeline file means, without running any
    Plan(PlanArgs),
    /// Print the JSON Schema of pipeline files
    Schema,
    /// Submit a pipeline to a fleet
    Submit(SubmitArgs),
    /// Follow a run of a fleet until it is settled
    Watch(WatchArgs),
    /// Print what a run's steps wrote
    Logs(LogsArgs),
    /// Show a run with its steps
    Show(ShowArgs),
    /// List runs, the newest first
    Ls(LsArgs),
    /// Say why a step waits, was tried again, missed its cache, or ended as it did
    Why(WhyArgs),
    /// Try again what did not pass of a run, or go on with one that was interrupted
    Retry(RetryArgs),
    /// Cancel a run of a fleet, or some steps of it
    Cancel(CancelArgs),
    /// Rebuild runs from the journal, and compare them with what is shown of them
    Replay(ReplayArgs),
    /// List a fleet's workers
    Workers(WorkersArgs),
    /// Look at what Longshore needs, and say what to mend
    Doctor(DoctorArgs),
    /// Be a fleet's coordinator
    Coordinator(CoordinatorArgs),
    /// Be one of a fleet's workers, beside a Docker Engine
    Worker(WorkerArgs),
}

/// Which coordinator is meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct Remote {
    /// Address of the fleet's coordinator, such as http://127.0.0.1:7420
    #[arg(long, env = "LONGSHORE_COORDINATOR", hide_env_values = true, value_name = "URL")]
    pub(crate) coordinator: Option<String>,

    /// Bearer token for the coordinator
    #[arg(long, env = "LONGSHORE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The pipeline file, YAML or JSON
    pub(crate) file: PathBuf,

    /// Steps carried out at once [default: the machine's cores]
    #[arg(long, env = "LONGSHORE_SLOTS", value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX))]
    pub(crate) slots: Option<u32>,

    /// Address of the Docker Engine [default: DOCKER_HOST, else Docker's own]
    #[arg(long, env = "LONGSHORE_DOCKER", value_name = "ADDRESS")]
    pub(crate) docker: Option<String>,

    /// Name of the run in lists [default: the pipeline's]
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// More containers than this on one host run into limits of the kernel (networks, processes) first.
const SLOTS_MAX: i64 = 1_000;

/// A petabyte: more is a slip of the finger.
const SPOOL_MIB_MAX: u64 = 1 << 30;

#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// The pipeline file, YAML or JSON
    pub(crate) file: PathBuf,

    /// A table, the resolved pipeline, or a Graphviz graph
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub(crate) format: PlanFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanFormat {
    Text,
    Json,
    Dot,
}

#[derive(Args, Debug)]
pub(crate) struct SubmitArgs {
    /// The pipeline file, YAML or JSON
    pub(crate) file: PathBuf,

    /// Follow the run until it is settled; exit with its outcome
    #[arg(long)]
    pub(crate) watch: bool,

    /// Id of the run, a UUID: submitting twice under one id is one run [default: a new one]
    #[arg(long, value_name = "UUID")]
    pub(crate) run_id: Option<RunId>,

    /// Name of the run in lists [default: the pipeline's]
    #[arg(long)]
    pub(crate) name: Option<String>,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// A run's id, a unique prefix of it, or `last`
    #[arg(default_value = "last")]
    pub(crate) run: String,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// A run's id, a unique prefix of it, or `last`
    #[arg(default_value = "last")]
    pub(crate) run: String,

    /// Only this step; then the lines come as they were, without the step's name
    pub(crate) step: Option<String>,

    /// Go on until the log is closed
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,

    /// Only this try of the step [default: all]
    #[arg(long, value_name = "N", requires = "step")]
    pub(crate) attempt: Option<u32>,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// A run's id, a unique prefix of it, or `last`
    #[arg(default_value = "last")]
    pub(crate) run: String,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// How many, at most
    #[arg(long, default_value_t = 20, value_name = "RUNS", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// A run's id, a unique prefix of it, or `last`
    #[arg(default_value = "last")]
    pub(crate) run: String,

    /// Which step [default: in short, each that is not settled or did not pass]
    pub(crate) step: Option<String>,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct RetryArgs {
    /// A run's id, a unique prefix of it, or `last`
    #[arg(default_value = "last")]
    pub(crate) run: String,

    /// Only the steps that ended so; may be given more than once [default: all that did not pass]
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) only: Vec<Only>,

    /// On a fleet: follow the run until it is settled; exit with its outcome
    #[arg(long)]
    pub(crate) watch: bool,

    /// Here: steps carried out at once [default: the machine's cores]
    #[arg(long, env = "LONGSHORE_SLOTS", value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX))]
    pub(crate) slots: Option<u32>,

    /// Here: address of the Docker Engine [default: DOCKER_HOST, else Docker's own]
    #[arg(long, env = "LONGSHORE_DOCKER", value_name = "ADDRESS")]
    pub(crate) docker: Option<String>,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Which of the steps that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Only {
    /// By their own fault, a timeout and a lack of memory included
    Failed,
    /// By the fleet's fault
    Infra,
    /// Skipped or cancelled
    Missing,
}

#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    /// A run's id, a unique prefix of it, or `last`
    pub(crate) run: String,

    /// Only this step, all instances of this matrix step, or every step that a pattern with * and ? fits
    pub(crate) step: Option<String>,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// A run's id, a unique prefix of it, or `last` [default: all]
    pub(crate) run: Option<String>,

    /// A coordinator's directory, or a state directory of runs that were carried out here [default: that of this user]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Address of the Docker Engine [default: DOCKER_HOST, else Docker's own]
    #[arg(long, env = "LONGSHORE_DOCKER", value_name = "ADDRESS")]
    pub(crate) docker: Option<String>,

    /// Address of RabbitMQ; not looked at without one
    #[arg(long, env = "LONGSHORE_AMQP", hide_env_values = true, value_name = "URI")]
    pub(crate) amqp: Option<String>,

    /// A coordinator's Postgres; not looked at without one
    #[arg(long, env = "LONGSHORE_DATABASE", hide_env_values = true, value_name = "URI")]
    pub(crate) database: Option<String>,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// What coordinator and worker have in common.
#[derive(Args, Debug)]
pub(crate) struct FleetArgs {
    /// Address of RabbitMQ
    #[arg(
        long,
        env = "LONGSHORE_AMQP",
        hide_env_values = true,
        value_name = "URI",
        default_value = "amqp://guest:guest@127.0.0.1:5672"
    )]
    pub(crate) amqp: String,

    /// Prefix of the queues: fleets share a broker by it
    #[arg(long, env = "LONGSHORE_PREFIX", default_value = "longshore", value_parser = prefix)]
    pub(crate) prefix: String,

    /// How long the coordinator believes a silent worker, in seconds; the same in the whole fleet
    #[arg(
        long,
        env = "LONGSHORE_LEASE",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(LEASE_SECS_MIN..=LEASE_SECS_MAX)
    )]
    pub(crate) lease: u32,

    /// How the log on stderr is written
    #[arg(long, env = "LONGSHORE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// With what stands behind it, a worker's id say, a queue's name has at most 255 bytes.
const PREFIX_CHARS_MAX: usize = 64;

/// It stands in the names of queues and exchanges, of which `amq.…` are the broker's own.
fn prefix(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=PREFIX_CHARS_MAX).contains(&text.len()) && text.chars().all(allowed);
    if fits && text != "amq" && !text.starts_with("amq.") {
        return Ok(text.to_owned());
    }
    Err(format!("use 1 to {PREFIX_CHARS_MAX} letters, digits, '-', '_' and '.', and not amq or amq.…"))
}

/// The other coordinators send a token to it. An empty variable is how a shell unsets it for one command.
fn advertised(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let rest = text.strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.contains(['@', ' ']));
    rest.map(|_| text.to_owned()).ok_or_else(|| "use http://HOST:PORT".to_owned())
}

/// Six heartbeats, none more often than one in half a second.
const LEASE_SECS_MIN: i64 = 3;
/// A step whose worker died would wait an hour: more is nobody's intention.
const LEASE_SECS_MAX: i64 = 3_600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,

    /// Address to listen on; other than loopback only with a token
    #[arg(long, env = "LONGSHORE_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7420")]
    pub(crate) listen: SocketAddr,

    /// Directory of the journal and the blobs [default: coordinator/ in the state directory, which LONGSHORE_STATE names]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Postgres for the journal, postgres://user:password@host/database; its coordinators share the directory of --state
    #[arg(long, env = "LONGSHORE_DATABASE", hide_env_values = true, value_name = "URI")]
    pub(crate) database: Option<String>,

    /// Where the other coordinators reach this one [default: http://ADDRESS of --listen, if that is one of a machine; else
    /// a coordinator with --database needs it]
    #[arg(long, env = "LONGSHORE_ADVERTISE", value_name = "URL", value_parser = advertised)]
    pub(crate) advertise: Option<String>,

    /// Bearer token that clients and workers must send
    #[arg(long, env = "LONGSHORE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,

    /// File of further tokens: a line each, the token, a space, the tenant whom its runs are charged to; behind it
    /// perhaps `weight=N`, the tenant's share of slot-time while others wait too
    #[arg(long, env = "LONGSHORE_TOKENS", value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,

    /// Address of the coordinator, where sources are fetched from
    #[arg(
        long,
        env = "LONGSHORE_COORDINATOR",
        hide_env_values = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:7420"
    )]
    pub(crate) coordinator: String,

    /// Bearer token for the coordinator
    #[arg(long, env = "LONGSHORE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,

    /// Directory of the worker's id, records and spools [default: worker/ in the state directory, which LONGSHORE_STATE names]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Steps carried out at once [default: the machine's cores]
    #[arg(long, env = "LONGSHORE_SLOTS", value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX))]
    pub(crate) slots: Option<u32>,

    /// Pool whose jobs it takes
    #[arg(long, env = "LONGSHORE_POOL", default_value = "default")]
    pub(crate) pool: PoolName,

    /// Containers kept after their steps, so that the next step goes on in each; 0 for none [default: as many as slots]
    #[arg(long, env = "LONGSHORE_PARKED", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=SLOTS_MAX))]
    pub(crate) parked: Option<u32>,

    /// How long each is kept; what it holds is committed then
    #[arg(long, env = "LONGSHORE_PARKED_FOR", value_name = "SECONDS", default_value_t = PARKED_FOR.as_secs())]
    pub(crate) parked_for: u64,

    /// How long steps may go on when the worker is told to end, before they are handed back; a second signal hands them
    /// back at once
    #[arg(long, env = "LONGSHORE_DRAIN", value_name = "SECONDS", default_value_t = DRAIN.as_secs())]
    pub(crate) drain: u64,

    /// MiB of the disk that the steps' output may take together until it is stored [default: a quarter of what is free]
    #[arg(long, env = "LONGSHORE_SPOOL", value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=SPOOL_MIB_MAX))]
    pub(crate) spool: Option<u64>,

    /// How long a container goes on without its worker before it ends itself
    #[arg(long, env = "LONGSHORE_ORPHAN", value_name = "SECONDS", default_value_t = ORPHAN.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) orphan: u64,

    /// Run every command as its container's own process, without a supervisor: nothing is parked, nothing outlives
    /// the worker
    #[arg(long, env = "LONGSHORE_DIRECT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) direct: bool,

    /// Address of the Docker Engine [default: DOCKER_HOST, else Docker's own]
    #[arg(long, env = "LONGSHORE_DOCKER", value_name = "ADDRESS")]
    pub(crate) docker: Option<String>,

    /// Address on which /metrics, /healthz and /readyz are served; none without it
    #[arg(long, env = "LONGSHORE_METRICS", value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn a_prefix_that_no_queue_could_have_is_refused() {
        for good in ["longshore", "team-1.fleet_2", "amqp"] {
            assert!(super::prefix(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "ü", "amq", "amq.mine", &"x".repeat(65)] {
            assert!(super::prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
