//! What the values of a pipeline may be, each bound with its reason. Checked of a file, where each message gets its
//! place, and again by [`validate`](super::validate) of what was submitted.

use longshore_protocol::job::{Command, Resources, StepSpec};

use super::model::Concurrency;
use super::retry::{Retry, RetryOn};

/// Largest pipeline file. A hundred times the largest one by hand; files do not belong in it.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Most steps of a pipeline after its matrices are expanded: one batch evaluation's commands. A run's state is held
/// in memory and journalled step by step.
pub const STEPS_MAX: usize = 10_000;

/// Most edges of a pipeline. Every step of one half waiting for every step of the other would be 25 million; a step
/// in between makes 10,000 of them.
pub(super) const EDGES_MAX: usize = 200_000;

/// Most text that scripts, arguments and environments hold after expansion: it is submitted, journalled and kept in
/// memory as one.
pub(super) const TEXT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Of a step's or pipeline's name: it stands in log lines and in tables beside other columns.
const NAME_CHARS_MAX: usize = 100;

/// Of a matrix value, which is part of a name.
pub(super) const MATRIX_VALUE_CHARS_MAX: usize = 100;

/// Of the names of one matrix: each is part of the instances' names, with its value.
pub(super) const MATRIX_NAMES_MAX: usize = 20;

/// Of a name with its matrix values: still one field of a log line.
const INSTANCE_CHARS_MAX: usize = 255;

/// Linux takes no longer argument or environment entry (`MAX_ARG_STRLEN`, 128 KiB with its end).
const ARG_BYTES_MAX: usize = 128 * 1024 - 1;

/// Linux takes a quarter of the stack limit (8 MiB), pointers included, for all arguments and environment together.
const ARGS_BYTES_MAX: usize = 1024 * 1024;

/// A week. What runs longer is a service.
const TIMEOUT_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// As the schema says: enough to tell apart whatever people call urgent, and no race for the largest number.
const PRIORITY: std::ops::RangeInclusive<i32> = -100..=100;

/// Of a concurrency group's name: it is shown to people.
const GROUP_CHARS_MAX: usize = 200;

/// As the schema says.
const RETRY_MAX: u32 = 10;

/// The longest first backoff: whoever must wait longer submits anew.
const BACKOFF_MS_MAX: u64 = 3600 * 1000;

/// More than there are failures that one tells apart.
const RETRY_ON_MAX: usize = 32;

/// From what a failed command says of itself to more than a store's disk has.
const OUTPUT_MAX: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 40;

/// Docker starts no container with less memory.
const MEMORY_BYTES_MIN: u64 = 6 * 1024 * 1024;

/// Docker's unit of processor time is a hundredth of a core; no Engine runs on more than this many.
const CPUS: std::ops::RangeInclusive<f64> = 0.01..=4096.0;

/// Of a cache key: it is hashed, and shown to people.
const CACHE_KEY_CHARS_MAX: usize = 512;

/// Directories of one step: each is a blob to upload and a call to the Engine.
const SOURCES_MAX: usize = 100;

/// Snapshots are images of this namespace (`SnapshotId`). A step that could name one would see the files of another
/// run, or of another tenant's cache.
const SNAPSHOTS: &str = "longshore/";

/// Of an image reference, a path, a user: Linux's own limit for a path.
const PATH_BYTES_MAX: usize = 4096;

type Check = Result<(), String>;

/// A pipeline's or a step's name, without matrix values.
pub(super) fn name(text: &str) -> Check {
    if text.is_empty() {
        return Err("a name is empty".to_owned());
    }
    let fits = (1..=NAME_CHARS_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    let rule = || format!("`{text}` is not a name: 1 to {NAME_CHARS_MAX} letters, digits, `.`, `_` and `-`");
    fits.then_some(()).ok_or_else(rule)
}

/// A step's name, with matrix values or without.
pub(super) fn instance_name(text: &str) -> Check {
    let (base, values) = text.split_once('[').unwrap_or((text, "]"));
    name(base)?;
    if text.chars().count() > INSTANCE_CHARS_MAX {
        return Err(format!(
            "the name `{base}[…` has more than {INSTANCE_CHARS_MAX} characters with its matrix values"
        ));
    }
    match values.strip_suffix(']') {
        Some(values) if !values.contains(|c: char| c.is_control() || matches!(c, '[' | ']')) => Ok(()),
        _ => Err(format!("`{text}` is not a step's name: `name[key=value,…]`")),
    }
}

pub(super) fn env_name(name: &str) -> Check {
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let rule = || format!("`{name}` is not a name of an environment variable: letters, digits and `_`, no digit first");
    is_name.then_some(()).ok_or_else(rule)
}

pub(super) fn env_value(name: &str, value: &str) -> Check {
    arg(&format!("`{name}`"), value, name.len() + 1)
}

fn arg(what: &str, text: &str, before: usize) -> Check {
    if text.contains('\0') {
        return Err(format!("{what} holds a NUL character, which no argument or variable can"));
    }
    if before + text.len() > ARG_BYTES_MAX {
        return Err(format!("{what} has {} bytes, Linux takes {ARG_BYTES_MAX} at most", before + text.len()));
    }
    Ok(())
}

pub(super) fn command(command: &Command) -> Check {
    match command {
        Command::Script { script, .. } if script.trim().is_empty() => return Err("the script is empty".to_owned()),
        Command::Script { shell, .. } if shell.first().is_none_or(String::is_empty) => {
            return Err("`shell` names no program".to_owned());
        }
        Command::Argv(argv) if argv.first().is_none_or(String::is_empty) => {
            return Err("`command` names no program".to_owned());
        }
        Command::Argv(argv) => argv.iter().try_for_each(|text| arg("an argument", text, 0))?,
        Command::Script { script, shell } => {
            shell.iter().try_for_each(|text| arg("an argument of `shell`", text, 0))?;
            arg("the script", script, 0)
                .map_err(|message| format!("{message}; put it into a file and the file into `sources`"))?;
        }
    }
    Ok(())
}

/// Of `workdir` and of a source's target.
pub(super) fn absolute(what: &str, path: &str) -> Check {
    plain(what, path)?;
    if !path.starts_with('/') {
        return Err(format!("{what} `{path}` is not absolute: it begins with `/`"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("{what} `{path}` goes up with `..`: write the path it means"));
    }
    Ok(())
}

/// A source's directory on the submitter's machine.
pub(super) fn source_path(path: &str) -> Check {
    plain("the path", path)?;
    if path.starts_with('/') {
        return Err(format!("the path `{path}` is absolute: write it relative to the pipeline file"));
    }
    Ok(())
}

pub(super) fn image(reference: &str) -> Check {
    plain("the image", reference)?;
    if reference.contains(char::is_whitespace) {
        return Err(format!("the image `{reference}` has a blank in it"));
    }
    // Docker's registry has two names of its own that mean the same as none.
    let name = ["docker.io/", "index.docker.io/"].iter().find_map(|host| reference.strip_prefix(host));
    if name.unwrap_or(reference).starts_with(SNAPSHOTS) {
        return Err(format!(
            "the image `{reference}` is in `{SNAPSHOTS}`, where Longshore keeps steps' snapshots: \
             go on in one by `from`, or share it by `cache`"
        ));
    }
    Ok(())
}

pub(super) fn user(user: &str) -> Check {
    plain("the user", user)?;
    if user.contains(char::is_whitespace) || user.split(':').count() > 2 || user.starts_with(':') {
        return Err(format!("`{user}` is not a user: a name or an id, with `:group` or without"));
    }
    Ok(())
}

fn plain(what: &str, text: &str) -> Check {
    match text {
        "" => Err(format!("{what} is empty")),
        long if long.len() > PATH_BYTES_MAX => Err(format!("{what} has more than {PATH_BYTES_MAX} bytes")),
        odd if odd.contains(char::is_control) => Err(format!("{what} holds a control character")),
        _ => Ok(()),
    }
}

pub(super) fn retry(retry: &Retry) -> Check {
    if retry.max > RETRY_MAX {
        return Err(format!("`retry` is 0 to {RETRY_MAX}"));
    }
    if retry.on.contains(&RetryOn::Exit(0)) {
        return Err("`retry` on exit status 0: a command that passed is not tried again".to_owned());
    }
    if retry.on.len() > RETRY_ON_MAX {
        return Err(format!("`on` of `retry` names at most {RETRY_ON_MAX} failures"));
    }
    if retry.backoff_ms > BACKOFF_MS_MAX {
        return Err("`backoff` of `retry` is at most `1h`".to_owned());
    }
    Ok(())
}

pub(super) fn timeout_ms(ms: u64) -> Check {
    match ms {
        0..1000 => Err("a timeout is at least `1s`".to_owned()),
        1000..=TIMEOUT_MS_MAX => Ok(()),
        _ => Err("a timeout is at most `7d`: what runs longer is a service".to_owned()),
    }
}

pub(super) fn queue_timeout_ms(ms: u64) -> Check {
    timeout_ms(ms).map_err(|message| {
        message.replace("a timeout", "a `queue_timeout`").replace(": what runs longer is a service", "")
    })
}

pub(super) fn priority(priority: i32) -> Check {
    if !PRIORITY.contains(&priority) {
        return Err(format!("`priority` is {} to {}", PRIORITY.start(), PRIORITY.end()));
    }
    Ok(())
}

pub(super) fn concurrency(concurrency: &Concurrency) -> Check {
    let group = &concurrency.group;
    if group.is_empty() || group.chars().count() > GROUP_CHARS_MAX || group.contains(char::is_control) {
        return Err(format!("a concurrency group has a name of 1 to {GROUP_CHARS_MAX} characters, no line breaks"));
    }
    if concurrency.max == 0 || concurrency.max as usize > STEPS_MAX {
        return Err(format!("`max` of `concurrency` is 1 to {STEPS_MAX}"));
    }
    Ok(())
}

pub(super) fn output_max(bytes: u64) -> Check {
    if !OUTPUT_MAX.contains(&bytes) {
        return Err("`output_max` is `64KiB` to `1024GiB`".to_owned());
    }
    Ok(())
}

pub(super) fn memory(bytes: u64) -> Check {
    if bytes < MEMORY_BYTES_MIN {
        return Err("Docker starts no container with less than `6MiB`".to_owned());
    }
    Ok(())
}

pub(super) fn cpus(cpus: f64) -> Check {
    if !CPUS.contains(&cpus) {
        return Err(format!("`cpus` is {} to {}, in cores", CPUS.start(), CPUS.end()));
    }
    Ok(())
}

pub(super) fn resources(resources: &Resources) -> Check {
    resources.memory_bytes.map_or(Ok(()), memory)?;
    resources.cpus.map_or(Ok(()), cpus)?;
    match resources.pids {
        Some(0) => Err("`pids` is at least 1".to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn cache_key(key: &str) -> Check {
    match key.chars().count() {
        0 => Err("the cache key is empty".to_owned()),
        1..=CACHE_KEY_CHARS_MAX if !key.contains(char::is_control) => Ok(()),
        _ => Err(format!("a cache key has 1 to {CACHE_KEY_CHARS_MAX} characters, no line breaks")),
    }
}

/// Of all arguments and the environment of one step.
pub(super) fn text_bytes(spec: &StepSpec) -> usize {
    let argv: usize = spec.command.argv().iter().map(String::len).sum();
    let env: usize = spec.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    argv + env
}

pub(super) fn total(spec: &StepSpec) -> Check {
    let bytes = text_bytes(spec);
    if bytes > ARGS_BYTES_MAX {
        return Err(format!("its arguments and environment have {bytes} bytes, at most {ARGS_BYTES_MAX} together"));
    }
    Ok(())
}

pub(super) fn sources(count: usize) -> Check {
    if count > SOURCES_MAX {
        return Err(format!("{count} sources, a step has at most {SOURCES_MAX}"));
    }
    Ok(())
}
