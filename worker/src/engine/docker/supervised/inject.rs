//! Streams a tar to a container's supervisor, which unpacks it: the Engine's own call would leave the mount point of
//! the supervisor's directory in the container's files.

use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use longshore_supervisor::wire::Inject;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::super::injected;
use super::super::super::{ContainerName, EngineError};
use super::super::DockerEngine;
use super::Held;
use super::link::{Ask, Link};

/// Half an hour moves some 10 GB over a slow line into a slow disk; sources are smaller.
const INJECT: Duration = Duration::from_mins(30);

/// One read of the input, one frame.
const CHUNK_BYTES: usize = 64 * 1024;

/// Without a supervisor the tar is handed back.
pub(in super::super) async fn inject<R: AsyncRead + Send + Unpin>(
    engine: &DockerEngine,
    container: &ContainerName,
    user: Option<&str>,
    target: &str,
    tar: R,
) -> Result<Result<(), EngineError>, R> {
    let Some(held) = engine.shared.supervised.find(container.as_str()) else { return Err(tar) };
    let slow = EngineError::Slow { operation: "inject", limit: INJECT };
    Ok(timeout(INJECT, inject_in(&held, user, target, tar)).await.unwrap_or(Err(slow)))
}

async fn inject_in(
    held: &Held,
    user: Option<&str>,
    target: &str,
    tar: impl AsyncRead + Send + Unpin,
) -> Result<(), EngineError> {
    let refused = |reason| EngineError::Refused { operation: "inject", status: 400, reason };
    injected::target_path(target).map_err(refused)?;
    let user = user.filter(|user| !user.is_empty()).map(str::to_owned).or_else(|| held.image.user.clone());
    let link = &held.link;
    let (answer, unpacked) = oneshot::channel();
    link.ask(Ask::Inject(Inject { target: target.to_owned(), user }, answer)).await?;

    let mut unpacked = pin!(link.answer(unpacked));
    // An answer before the tar's end is a refusal: then the rest is not read.
    let (early, read) = tokio::select! {
        early = &mut unpacked => (Some(early), Ok(())),
        read = feed(link, tar) => (None, read),
    };
    // In any case, or the supervisor would wait for the rest of it: a tar without its end mark is none.
    link.ask(Ask::DataEnd).await?;
    let unpacked = match early {
        Some(answer) => answer,
        None => unpacked.await,
    };
    match read {
        // What is wrong with the input stands before what came of it; and a reader that checks a hash tells so at the
        // very end, when all of it is unpacked.
        Err(Unread::Input(error)) => Err(EngineError::Input { reason: error.to_string() }),
        Err(Unread::Link(error)) => Err(error),
        Ok(()) => unpacked,
    }
}

/// Why the tar was not sent to its end.
enum Unread {
    Input(std::io::Error),
    Link(EngineError),
}

async fn feed(link: &Link, mut tar: impl AsyncRead + Unpin) -> Result<(), Unread> {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            // Small reads are gathered: a frame for each would cost more than its bytes.
            if tar.read_buf(&mut chunk).await.map_err(Unread::Input)? == 0 {
                break;
            }
        }
        if chunk.is_empty() {
            return Ok(());
        }
        link.ask(Ask::Data(chunk.freeze())).await.map_err(Unread::Link)?;
    }
}
