//! What the client and the Engine say, as an [`EngineError`].

use std::error::Error as StdError;
use std::io;

use bollard::errors::Error as ClientError;

use super::super::{ContainerName, EngineError};

/// The general reading; callers that know more refine it, by [`gone`] for instance.
pub(super) fn from_client(address: &str, operation: &'static str, error: ClientError) -> EngineError {
    match error {
        ClientError::DockerResponseServerError { status_code, message } => refused(operation, status_code, message),
        // Said in the middle of an answer that began with 200: the status that it would have had is not known.
        ClientError::DockerStreamError { error } => refused(operation, 500, error),
        // An answer that is not Docker's: something else listens there, or a proxy stands between.
        ClientError::JsonDataError { .. } | ClientError::JsonSerdeError { .. } => {
            refused(operation, 502, error.to_string())
        }
        // Transparent: it would hide its kind from those who walk the chain.
        ClientError::IOError { err } => unreachable(address, &err),
        error => unreachable(address, &error),
    }
}

/// A refusal, which a full disk is too.
pub(super) fn refused(operation: &'static str, status: u16, reason: String) -> EngineError {
    if is_disk_full(&reason) {
        EngineError::DiskFull { reason }
    } else {
        EngineError::Refused { operation, status, reason }
    }
}

/// What the kernel calls ENOSPC and EDQUOT, whatever stands around it.
fn is_disk_full(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    reason.contains("no space left on device") || reason.contains("disk quota exceeded")
}

/// A 404 about a container means that there is none.
pub(super) fn gone(error: EngineError, container: &ContainerName) -> EngineError {
    none_of(error, container.as_str())
}

/// The same, for a container of any name.
pub(super) fn none_of(error: EngineError, container: &str) -> EngineError {
    match error {
        EngineError::Refused { status: 404, .. } => EngineError::Gone { name: container.to_owned() },
        error => error,
    }
}

/// Nobody answered, with the whole chain of causes (the client's first words say nothing) and the mend.
pub(super) fn unreachable(address: &str, error: &(dyn StdError + 'static)) -> EngineError {
    let mut reason = String::new();
    let mut kind = None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !reason.contains(&words) {
            if !reason.is_empty() {
                reason.push_str(": ");
            }
            reason.push_str(&words);
        }
        kind = error.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
        cause = error.source();
    }
    let mend = match kind {
        Some(io::ErrorKind::PermissionDenied) => {
            " (may this user read the socket? Members of the group that owns it may, often `docker`)"
        }
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            " (is dockerd running? DOCKER_HOST names another address)"
        }
        _ => "",
    };
    reason.push_str(mend);
    EngineError::Unreachable { address: address.to_owned(), reason }
}

/// Why a start was refused: the command's own fault, in a shell's numbers, or something else.
pub(super) fn start_refused(error: EngineError, container: &ContainerName) -> EngineError {
    let EngineError::Refused { status, reason, operation } = error else { return error };
    if status == 404 && reason.contains("No such container") {
        return EngineError::Gone { name: container.to_string() };
    }
    let says = |words: &str| reason.contains(words);
    // The runtime's words about execve: `exec: "make": executable file not found in $PATH`.
    // Only what the container's process was to be: a runtime or shim that is missing is named in the same words.
    let exit = if says("container process") && (says("exec: \"") || says("exec format error")) {
        let missing = says("executable file not found") || says("no such file or directory");
        Some(if missing { 127 } else { 126 })
    } else if says("unable to find user")
        || says("unable to find group")
        || says("no matching entries")
        || says("chdir to cwd")
        || says("mkdir") && says("not a directory")
    {
        None
    } else {
        return EngineError::Refused { operation, status, reason };
    };
    EngineError::CannotStart { reason, exit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ErrorClass;

    fn server(status_code: u16, message: &str) -> ClientError {
        ClientError::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    fn start(status: u16, message: &str) -> EngineError {
        let name = ContainerName::parse("longshore.w.0123456789abcdef0123456789abcdef.1").unwrap();
        start_refused(from_client("a", "start", server(status, message)), &name)
    }

    #[test]
    fn a_full_disk_is_recognised_wherever_it_is_said() {
        for error in [
            server(500, "Error processing tar file(exit status 1): write /x: no space left on device"),
            ClientError::DockerStreamError { error: "write /layer: No space left on device".to_owned() },
        ] {
            let error = from_client("a", "commit", error);
            assert!(matches!(error, EngineError::DiskFull { .. }), "{error:?}");
            assert_eq!(error.class(), ErrorClass::Host);
        }
    }

    #[test]
    fn who_cannot_start_gets_a_shells_number() {
        let says = |text: &str| match start(400, text) {
            EngineError::CannotStart { exit, .. } => exit,
            other => panic!("{other:?}"),
        };
        let runc = "OCI runtime create failed: runc create failed: unable to start container process: ";
        assert_eq!(says(&format!("{runc}exec: \"x\": executable file not found in $PATH: unknown")), Some(127));
        assert_eq!(says(&format!("{runc}exec: \"/x\": stat /x: no such file or directory: unknown")), Some(127));
        assert_eq!(says(&format!("{runc}exec: \"/etc\": permission denied: unknown")), Some(126));
        assert_eq!(says("unable to find user nosuch: no matching entries in passwd file"), None);
        // As Docker 20.10's runc says it.
        let older = "OCI runtime create failed: container_linux.go:380: starting container process caused: ";
        assert_eq!(says(&format!("{older}exec: \"x\": executable file not found in $PATH: unknown")), Some(127));
        // The Engine's own trouble is not the command's.
        let shim = "failed to create shim task: exec: \"runc\": executable file not found in $PATH: unknown";
        assert_eq!(start(500, shim).class(), ErrorClass::Retry);
        assert_eq!(start(500, "failed to create endpoint on network bridge").class(), ErrorClass::Retry);
        assert!(matches!(start(404, "No such container: x"), EngineError::Gone { .. }));
    }

    #[test]
    fn an_absent_engine_is_told_with_the_mend() {
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        let text = from_client("unix:///x", "info", ClientError::IOError { err: error }).to_string();
        assert!(text.contains("unix:///x") && text.contains("may this user read the socket"), "{text}");
    }
}
