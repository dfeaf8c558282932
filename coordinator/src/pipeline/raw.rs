//! The keys that a pipeline file may hold. The JSON schema is made from these types, every file is checked against
//! that schema ([`shape`](super::shape)) and then read into them: one schema, which cannot differ from what is read.
//! A key is here only if it works.

use std::borrow::Cow;
use std::sync::LazyLock;

use indexmap::IndexMap;
use longshore_protocol::job::Network;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::json;

use super::model::SnapshotRule;

/// A Longshore pipeline: steps that run in containers, each on the files that another one left.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Longshore pipeline")]
pub(super) struct RawPipeline {
    /// What people call the pipeline: up to 100 letters, digits, `.`, `_` and `-`.
    pub(super) name: String,
    /// Environment of every step.
    #[serde(default)]
    pub(super) env: RawEnv,
    /// What steps have that do not say otherwise.
    #[serde(default)]
    pub(super) defaults: RawDefaults,
    /// How long the whole run may take, from its submission; without limit if not given.
    pub(super) timeout: Option<DurationText>,
    /// How long a step may wait for a worker that says nothing itself, as in `defaults`.
    pub(super) queue_timeout: Option<DurationText>,
    /// Of every step that has none of its own: -100 to 100, 0 if not given. Among the steps of one tenant that wait for
    /// a pool, the highest goes first.
    #[schemars(range(min = -100, max = 100))]
    pub(super) priority: Option<i32>,
    /// The steps, in any order.
    pub(super) steps: Vec<RawStep>,
}

/// Names and values of environment variables, in order.
pub(super) type RawEnv = IndexMap<String, Scalar>;

/// What steps have that do not say otherwise.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDefaults {
    /// Image of every step that has neither `image` nor `from`.
    pub(super) image: Option<String>,
    /// Environment of every step; a step's own `env` goes over it, name by name.
    #[serde(default)]
    pub(super) env: RawEnv,
    /// Directory in which the command runs.
    pub(super) workdir: Option<String>,
    /// User who runs the command.
    pub(super) user: Option<Scalar>,
    /// How long a command may run.
    pub(super) timeout: Option<DurationText>,
    /// How long a step may wait for a worker.
    pub(super) queue_timeout: Option<DurationText>,
    /// The group with which steps share a number of places.
    pub(super) concurrency: Option<RawConcurrency>,
    /// Extra tries after the command failed.
    pub(super) retry: Option<RawRetry>,
    /// How much of a step's output is kept.
    pub(super) output_max: Option<SizeText>,
    /// Limits of every step's container; a step's own `resources` go over them, key by key.
    #[serde(default)]
    pub(super) resources: RawResources,
    /// What steps can reach.
    pub(super) network: Option<Network>,
    /// The set of workers that carries steps out.
    pub(super) pool: Option<String>,
    /// Program and flags that run `run`, without the `-c`.
    pub(super) shell: Option<Vec<String>>,
    /// Whether steps go on after another step failed.
    pub(super) keep_going: Option<bool>,
}

/// One command in one container.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStep {
    /// Unique in the file: up to 100 letters, digits, `.`, `_` and `-`.
    pub(super) name: String,
    /// Image that the step starts from. Not with `from`.
    pub(super) image: Option<String>,
    /// Step whose files this one goes on with; it must have passed. Not with `image`.
    pub(super) from: Option<String>,
    /// Steps that must have passed before this one starts; their files are not handed over.
    #[serde(default)]
    pub(super) needs: Vec<String>,
    /// Script for the shell. Not with `command`.
    pub(super) run: Option<String>,
    /// Program and arguments, without a shell. Not with `run`.
    pub(super) command: Option<Vec<Scalar>>,
    /// Environment of this step, over the pipeline's and the defaults'.
    #[serde(default)]
    pub(super) env: RawEnv,
    /// Directory in which the command runs, absolute, made if missing; the image's if not given.
    pub(super) workdir: Option<String>,
    /// User who runs the command: a name or an id, with `:group` or without; the image's if not given.
    pub(super) user: Option<Scalar>,
    /// Directories of the submitter's that are put into the container before the command runs.
    #[serde(default)]
    pub(super) sources: Vec<RawSource>,
    /// Values for which the step is repeated: one instance for each combination.
    pub(super) matrix: Option<IndexMap<String, Vec<Scalar>>>,
    /// How long the command may run; 1h if not given.
    pub(super) timeout: Option<DurationText>,
    /// How long the step may wait for a worker once what it waits for has passed; without limit if not given.
    pub(super) queue_timeout: Option<DurationText>,
    /// -100 to 100; the pipeline's if not given.
    #[schemars(range(min = -100, max = 100))]
    pub(super) priority: Option<i32>,
    /// A group's name: of all your steps with it, of this run or another, one is carried out at a time. Or a group and
    /// how many at a time.
    pub(super) concurrency: Option<RawConcurrency>,
    /// Extra tries after the command failed, 0 to 10; failures of the fleet are retried without counting. 0 if not
    /// given. Or a rule: how many, after which failures, and how long to wait.
    pub(super) retry: Option<RawRetry>,
    /// Keeps the step's files under a key, and does not run it where they are kept already.
    pub(super) cache: Option<RawCache>,
    /// When the step's files are committed to an image; `auto` if not given.
    pub(super) snapshot: Option<SnapshotRule>,
    /// How much of the step's output is kept, both streams together, 64KiB to 1024GiB; what goes beyond is counted, and
    /// the log ends in a line that says so. 4GiB if not given.
    pub(super) output_max: Option<SizeText>,
    /// Limits of the container.
    #[serde(default)]
    pub(super) resources: RawResources,
    /// What the step can reach; `none` if not given.
    pub(super) network: Option<Network>,
    /// The set of workers that carries the step out; `default` if not given.
    pub(super) pool: Option<String>,
    /// Program and flags that run `run`, without the `-c`; `[/bin/sh, -e]` if not given.
    pub(super) shell: Option<Vec<String>>,
    /// Whether the step is started and finished although another one failed; `false` if not given.
    pub(super) keep_going: Option<bool>,
    /// Whether the step must never run twice at once, as a deployment must not: it is ended before its host is given up.
    /// `false` if not given.
    pub(super) exclusive: Option<bool>,
}

/// A directory of the submitter's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSource {
    /// The directory, relative to the pipeline file.
    pub(super) path: String,
    /// Where its content goes in the container, absolute; missing directories are made.
    pub(super) target: String,
}

/// Under what a step's files are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCache {
    /// Text that changes whenever the step's result would; each step's is its own.
    pub(super) key: String,
}

/// How often a command that failed is tried again: a number, or a rule.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawRetry {
    Times(u32),
    Rule(RawRetryRule),
}

/// When a command that failed is tried again.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetryRule {
    /// Extra tries, 0 to 10.
    #[schemars(range(max = 10))]
    pub(super) max: u32,
    /// After which failures: exit statuses, `failed` (any of them), `signaled`, `timed_out`, `oom_killed`; after every
    /// one if not given.
    pub(super) on: Option<Vec<Scalar>>,
    /// How long the first retry waits; each further one waits twice as long. Not at all if not given.
    pub(super) backoff: Option<DurationText>,
}

impl JsonSchema for RawRetry {
    fn schema_name() -> Cow<'static, str> {
        "Retry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = RawRetryRule::json_schema(generator);
        schema.insert("type".to_owned(), json!(["integer", "object"]));
        schema.insert("minimum".to_owned(), json!(0));
        schema.insert("maximum".to_owned(), json!(10));
        schema
    }
}

/// The group with which steps share a number of places: a name, or a name and the number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawConcurrency {
    Name(String),
    Group(RawGroup),
}

/// Steps that share a number of places.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGroup {
    /// Its name: up to 200 characters. Groups of different tenants have nothing to do with each other.
    pub(super) group: String,
    /// The step begins only while fewer than so many of the group are under way; 1 if not given.
    #[schemars(range(min = 1, max = 10_000))]
    pub(super) max: Option<u32>,
}

impl JsonSchema for RawConcurrency {
    fn schema_name() -> Cow<'static, str> {
        "Concurrency".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = RawGroup::json_schema(generator);
        schema.insert("type".to_owned(), json!(["string", "object"]));
        schema
    }
}

/// Limits of a container; the worker's own where not given.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawResources {
    /// Of processor time, in cores: 0.5 is half of one.
    pub(super) cpus: Option<f64>,
    /// Of memory, swap included.
    pub(super) memory: Option<SizeText>,
    /// Of processes and threads.
    #[schemars(range(min = 1))]
    pub(super) pids: Option<u32>,
}

/// A string, or a number or boolean that is taken as it is written: `3.10` stays `3.10`.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Scalar(pub(super) String);

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// A text that says how long, with units.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct DurationText(pub(super) String);

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
            "examples": ["90s", "10m", "1h30m"],
        })
    }
}

/// A text that says how many bytes, with a unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct SizeText(pub(super) String);

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(KiB|MiB|GiB)$",
            "examples": ["512MiB", "2GiB"],
        })
    }
}

/// A key without a value is a mistake, not a way to leave it out: `null` goes, and with it the `default: null`.
#[derive(Clone)]
struct NoNull;

impl Transform for NoNull {
    fn transform(&mut self, schema: &mut Schema) {
        let null = json!("null");
        if let Some(types) = schema.get_mut("type").and_then(|types| types.as_array_mut()) {
            types.retain(|kind| *kind != null);
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        if let Some(choices) = schema.get_mut("anyOf").and_then(|choices| choices.as_array_mut()) {
            choices.retain(|choice| choice.get("type") != Some(&null));
            if let [only] = choices.as_slice() {
                let only = only.as_object().cloned().unwrap_or_default();
                schema.remove("anyOf");
                for (key, value) in only {
                    // What is said at the place of use is nearer to the reader than what the type says.
                    if schema.get(&key).is_none() {
                        schema.insert(key, value);
                    }
                }
            }
        }
        schema.remove("default");
        transform_subschemas(self, schema);
    }
}

static SCHEMA: LazyLock<serde_json::Value> = LazyLock::new(|| {
    // Everything in place: the types do not refer to themselves, and editors show what a hover finds in place.
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.with_transform(NoNull).into_generator().into_root_schema_for::<RawPipeline>().to_value()
});

/// The schema of a pipeline file, for editors and for [`parse`](super::parse) itself.
pub fn json_schema() -> serde_json::Value {
    SCHEMA.clone()
}

pub(super) fn schema() -> &'static serde_json::Value {
    &SCHEMA
}
