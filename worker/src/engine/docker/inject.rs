//! Streams a tar into a created container, rewritten on the way, in constant memory.
//!
//! `input → (4 chunks) → a blocking thread that rewrites → (4 chunks) → the Engine`, which unpacks it in a root of
//! the container's own: a symbolic link in the target's path is followed there and nowhere else.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bollard::query_parameters::{ContainerArchiveInfoOptionsBuilder, UploadToContainerOptionsBuilder};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::injected::{self, InjectError, Placement};
use super::super::{ContainerName, EngineError};
use super::{DockerEngine, QUESTION, errors, owner};

/// Half an hour moves some 10 GB over a slow line into a slow disk; sources are smaller.
const INJECT: Duration = Duration::from_mins(30);

/// One read of the input, one piece for the Engine.
const CHUNK_BYTES: usize = 64 * 1024;

/// How many chunks wait on each side of the thread: enough for either side to be late by one turn.
const CHUNKS_MAX: usize = 4;

pub(super) async fn inject(
    engine: &DockerEngine,
    container: &ContainerName,
    user: Option<&str>,
    target: &str,
    tar: impl AsyncRead + Send + Unpin + 'static,
) -> Result<(), EngineError> {
    let refused = |reason| EngineError::Refused { operation: "inject", status: 400, reason };
    let target = injected::target_path(target).map_err(refused)?;
    let inspected = engine.inspect(container).await?;
    let of_container = inspected.config.and_then(|config| config.user).unwrap_or_default();
    let user = user.map_or(of_container, str::to_owned);
    let owner = owner::find(engine, container, &user).await?;
    let missing = missing_directories(engine, container, &target).await?;
    upload(engine, container, Placement { target, missing, owner }, tar).await
}

/// Which directories on the way to the target are to be made, the outermost first. Those that are there get no
/// entry in the tar: the Engine would give them that entry's mode and owner.
async fn missing_directories(
    engine: &DockerEngine,
    container: &ContainerName,
    target: &Path,
) -> Result<Vec<PathBuf>, EngineError> {
    let mut missing = Vec::new();
    // From the target upwards: mostly it is there, or its parent is.
    for directory in target.ancestors().take_while(|path| !path.as_os_str().is_empty()) {
        if is_directory(engine, container, directory).await? {
            break;
        }
        missing.push(directory.to_owned());
    }
    missing.reverse();
    Ok(missing)
}

async fn is_directory(engine: &DockerEngine, container: &ContainerName, directory: &Path) -> Result<bool, EngineError> {
    // With `/.` behind it the Engine follows a symbolic link, and fails at what is no directory.
    let path = format!("/{}/.", directory.display());
    let options = ContainerArchiveInfoOptionsBuilder::new().path(&path).build();
    let call = engine.client().get_container_archive_info(container.as_str(), Some(options));
    match engine.limited("stat", QUESTION, call).await {
        Ok(_) => Ok(true),
        Err(EngineError::Refused { status: 404, .. }) => Ok(false),
        // An answer to HEAD has no words.
        Err(EngineError::Refused { status: 400 | 500, .. }) => Err(EngineError::Refused {
            operation: "inject",
            status: 400,
            reason: format!("/{} is no directory", directory.display()),
        }),
        Err(error) => Err(error),
    }
}

async fn upload(
    engine: &DockerEngine,
    container: &ContainerName,
    placement: Placement,
    tar: impl AsyncRead + Send + Unpin + 'static,
) -> Result<(), EngineError> {
    let (input_tx, input_rx) = mpsc::channel(CHUNKS_MAX);
    let (output_tx, output_rx) = mpsc::channel(CHUNKS_MAX);
    let rewriting = tokio::task::spawn_blocking(move || {
        let input = Incoming { receiver: input_rx, current: Bytes::new(), ended: false };
        let output = Chunks { sender: output_tx.clone(), filled: BytesMut::with_capacity(CHUNK_BYTES) };
        let result = injected::rewrite(input, output, &placement);
        if let Err(error) = &result {
            // An upload that merely ended would look like a whole tar.
            let _ = output_tx.blocking_send(Err(io::Error::other(error.to_string())));
        }
        result
    });
    let options = UploadToContainerOptionsBuilder::new().path("/").build();
    let body = bollard::body_try_stream(ReceiverStream::new(output_rx));
    let uploading = engine.client().upload_to_container(container.as_str(), Some(options), body);
    let uploading = async {
        let mut uploading = pin!(uploading);
        // The input is read only as long as the upload lives: an answer before its end is a refusal.
        tokio::select! {
            uploaded = &mut uploading => uploaded,
            () = feed(tar, input_tx) => uploading.await,
        }
    };
    let uploaded = engine.limited("inject", INJECT, uploading).await;
    let rewritten = rewriting.await.unwrap_or_else(|error| Err(InjectError::Output(io::Error::other(error))));
    match (rewritten, uploaded) {
        // What stopped the reading is not the input's fault, and told below.
        (Err(InjectError::Input(error)), Ok(())) => Err(EngineError::Input { reason: error.to_string() }),
        (Err(InjectError::Input(error)), _) if !is_abandoned(&error) => {
            Err(EngineError::Input { reason: error.to_string() })
        }
        (Err(error @ InjectError::Refused { .. }), _) => {
            Err(EngineError::Refused { operation: "inject", status: 400, reason: error.to_string() })
        }
        (_, Err(error)) => Err(errors::gone(error, container)),
        (Err(InjectError::Output(error)), Ok(())) => {
            // The Engine was content before everything had been sent: it did not unpack everything.
            Err(EngineError::Refused { operation: "inject", status: 500, reason: error.to_string() })
        }
        (Ok(()), Ok(())) => Ok(()),
    }
}

/// Reads the input into the channel, until either ends. A read error goes the same way; an empty chunk is the end.
async fn feed(mut tar: impl AsyncRead + Unpin, chunks: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = tar.read_buf(&mut chunk).await;
        let last = !matches!(read, Ok(1..));
        let sent = match read {
            Ok(0) => chunks.send(Ok(Bytes::new())).await,
            Ok(_) => chunks.send(Ok(chunk.freeze())).await,
            Err(error) => chunks.send(Err(error)).await,
        };
        if last || sent.is_err() {
            return;
        }
    }
}

/// The thread's side of the input.
struct Incoming {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// Nobody reads the input any more: the upload has failed, or took too long.
fn abandoned() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the input was abandoned")
}

fn is_abandoned(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            self.current = self.receiver.blocking_recv().ok_or_else(abandoned)??;
            self.ended = self.current.is_empty();
        }
        let len = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..len]);
        Ok(len)
    }
}

/// The thread's side of the output: small writes gathered into chunks.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    filled: BytesMut,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.filled.extend_from_slice(bytes);
        if self.filled.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.filled, BytesMut::with_capacity(CHUNK_BYTES)).freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the Engine takes no more");
        self.sender.blocking_send(Ok(chunk)).map_err(gone)
    }
}
