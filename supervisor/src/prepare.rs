//! From a [`Run`] to something that can be executed: user, directory, environment, program.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use longshore_supervisor::wire::{CannotStart, Run, Whose};

use crate::sys::{ExecPlan, SpawnError};
use crate::users;

/// Docker's, for an image that sets none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks everything up. Nothing is started; the working directory is made.
pub(crate) fn prepare(run: &Run) -> Result<ExecPlan, CannotStart> {
    let refused = |exit, reason: String| CannotStart { id: run.id.clone(), exit, reason, whose: Whose::Refused };
    if u8::try_from(run.id.len()).is_err() {
        return Err(refused(None, "the id is longer than 255 bytes".to_owned()));
    }
    let program = run.argv.first().ok_or_else(|| refused(None, "an empty command".to_owned()))?;
    let identity = users::find(run.user.as_deref().unwrap_or_default()).map_err(|reason| refused(None, reason))?;
    let workdir = run.workdir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
    make_workdir(workdir).map_err(|reason| refused(None, format!("working directory {workdir:?}: {reason}")))?;

    let env = environment(&run.env, &identity.home);
    let path = env.iter().find_map(|(name, value)| (name == "PATH").then_some(value.as_str())).unwrap_or_default();
    let searched = !program.contains('/');
    let programs = if searched { candidates(program, path) } else { vec![program.clone()] };
    let strings = |strings: Vec<String>| -> Result<Vec<CString>, CannotStart> {
        let strings = strings.into_iter().map(CString::new).collect::<Result<_, _>>();
        strings.map_err(|_| refused(Some(126), "a zero byte in an argument or in the environment".to_owned()))
    };
    Ok(ExecPlan {
        programs: strings(programs)?,
        searched,
        argv: strings(run.argv.clone())?,
        env: strings(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())?,
        workdir: strings(vec![workdir.to_owned()])?.remove(0),
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
    })
}

/// Docker's rule: made with its parents if missing, and root's whoever the command runs as.
fn make_workdir(workdir: &str) -> Result<(), String> {
    if !workdir.starts_with('/') {
        return Err("is not absolute".to_owned());
    }
    if !Path::new(workdir).is_dir() {
        DirBuilder::new().recursive(true).mode(0o755).create(workdir).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Of two with one name the last counts, at the place of the first.
fn environment(given: &[(String, String)], home: &str) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(given.len() + 3);
    for (name, value) in given {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    let mut add = |name: &str, value: String, empty_counts: bool| match env.iter_mut().find(|(known, _)| known == name)
    {
        None => env.push((name.to_owned(), value)),
        Some((_, known)) if known.is_empty() && !empty_counts => *known = value,
        Some(_) => {}
    };
    add("PATH", PATH_DEFAULT.to_owned(), true);
    add("HOSTNAME", rustix::system::uname().nodename().to_string_lossy().into_owned(), true);
    add("HOME", home.to_owned(), false); // the runtime takes an empty one for none
    env
}

/// Every directory of `PATH`; an empty one is the current directory, as for a shell.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    let within = |directory: &str| match directory {
        "" => format!("./{program}"),
        directory => format!("{directory}/{program}"),
    };
    path.split(':').map(within).collect()
}

/// What the command's owner is told.
pub(crate) fn explain(run: &Run, error: &SpawnError) -> CannotStart {
    let program = run.argv.first().map(String::as_str).unwrap_or_default();
    let (exit, whose, reason) = match error {
        SpawnError::Fork(error) => (None, Whose::Io, format!("no process could be made: {error}")),
        SpawnError::Setup(error) => (None, Whose::Io, format!("the process could not be set up: {error}")),
        SpawnError::Workdir(error) => {
            let workdir = run.workdir.as_deref().unwrap_or("/");
            (None, Whose::Refused, format!("working directory {workdir:?}: {error}"))
        }
        SpawnError::Exec(error) => match error.raw_os_error() {
            Some(libc::ENOENT) if program.contains('/') => {
                (Some(127), Whose::Refused, format!("{program}: no such file or directory, or its interpreter is none"))
            }
            Some(libc::ENOENT) => (Some(127), Whose::Refused, format!("{program}: not found in PATH")),
            Some(libc::ENOMEM | libc::EAGAIN | libc::ENFILE | libc::EIO) => {
                (None, Whose::Io, format!("{program}: {error}"))
            }
            _ => (Some(126), Whose::Refused, format!("{program}: {error}")),
        },
    };
    CannotStart { id: run.id.clone(), exit, reason, whose }
}

/// For the command's standard input.
pub(crate) fn dev_null() -> io::Result<std::fs::File> {
    std::fs::File::open("/dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_environment_is_completed_as_docker_does() {
        let env = environment(&[pair("A", "1"), pair("PATH", ""), pair("A", "2"), pair("HOME", "")], "/home/me");
        assert_eq!(env[..3], [pair("A", "2"), pair("PATH", ""), pair("HOME", "/home/me")]);
        assert_eq!((env[3].0.as_str(), env.len()), ("HOSTNAME", 4));
        let env = environment(&[pair("HOME", "/h"), pair("HOSTNAME", "n")], "/");
        assert_eq!(env, [pair("HOME", "/h"), pair("HOSTNAME", "n"), pair("PATH", PATH_DEFAULT)]);
    }

    #[test]
    fn a_path_is_searched_in_order() {
        assert_eq!(candidates("x", "/a:/b"), ["/a/x", "/b/x"]);
        assert_eq!(candidates("x", ":/b"), ["./x", "/b/x"]);
        assert!(candidates("", "/a").is_empty());
    }
}
