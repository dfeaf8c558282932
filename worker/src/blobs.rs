//! Where the bytes of sources come from. They are checked against their name on the way.

use std::io;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use longshore_protocol::BlobHash;
use longshore_protocol::job::Source;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_util::io::StreamReader;

use crate::config::BlobSource;
use crate::error::WorkerError;

/// One read of a file or socket.
const PIECE_BYTES: usize = 64 * 1024;

/// Within a site a connection takes milliseconds.
const CONNECT: Duration = Duration::from_secs(10);

/// A coordinator that says nothing for so long, also in the middle of a blob, is gone. How long all of it takes
/// depends on its size.
const SILENCE: Duration = Duration::from_mins(1);

/// A place that has blobs.
pub(crate) struct Blobs {
    source: BlobSource,
    client: reqwest::Client,
}

/// Why a blob did not come whole.
#[derive(Debug, thiserror::Error)]
#[error("source {hash}: {reason}")]
pub(crate) struct BlobError {
    hash: BlobHash,
    reason: String,
}

impl Blobs {
    pub(crate) fn new(source: BlobSource) -> Result<Self, WorkerError> {
        // Whoever has the token is asked, and nobody else: the coordinator redirects nowhere.
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let client = client.connect_timeout(CONNECT).read_timeout(SILENCE).build();
        let client = client.map_err(|error| WorkerError::Blobs { reason: error.to_string() })?;
        Ok(Self { source, client })
    }

    /// Streams a blob into `sink`, in constant memory. `Ok` only if all of it had the hash that is its name;
    /// whoever reads the other end must not use what came before that.
    pub(crate) async fn copy(&self, source: &Source, mut sink: DuplexStream) -> Result<(), BlobError> {
        let failed = |reason: String| BlobError { hash: source.blob.clone(), reason };
        let mut bytes = self.open(&source.blob).await.map_err(|error| failed(error.to_string()))?;
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = source.bytes;
        // The reader may stop at the tar's end, before the padding behind it; the hash covers that as well.
        let mut wanted = true;
        loop {
            let count = bytes.read(&mut piece).await.map_err(|error| failed(error.to_string()))?;
            if count == 0 {
                break;
            }
            // Not read for as long as somebody likes to send.
            left = left
                .checked_sub(count as u64)
                .ok_or_else(|| failed(format!("it is longer than its {} bytes", source.bytes)))?;
            hasher.update(&piece[..count]);
            wanted = wanted && sink.write_all(&piece[..count]).await.is_ok();
        }
        let found = BlobHash::finish(&hasher);
        if found == source.blob { Ok(()) } else { Err(failed(format!("its bytes have the hash {found}"))) }
    }

    async fn open(&self, hash: &BlobHash) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        match &self.source {
            BlobSource::Dir(dir) => {
                let path = dir.join(&hash.as_str()[..2]).join(hash.as_str());
                Ok(Box::new(tokio::fs::File::open(path).await?))
            }
            BlobSource::Http { coordinator, token } => {
                let mut request = self.client.get(format!("{}/v1/blobs/{hash}", coordinator.trim_end_matches('/')));
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                let answer = request.send().await.and_then(reqwest::Response::error_for_status);
                let answer = answer.map_err(chain)?;
                if !answer.status().is_success() {
                    return Err(io::Error::other(format!("{coordinator} answers with {}", answer.status())));
                }
                Ok(Box::new(StreamReader::new(answer.bytes_stream().map_err(chain))))
            }
        }
    }
}

/// With its causes: the client's first words do not say what happened.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` wants")]
fn chain(error: reqwest::Error) -> io::Error {
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    io::Error::other(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(content: &[u8]) -> Source {
        Source { blob: BlobHash::of(content), bytes: content.len() as u64, target: "/src".to_owned() }
    }

    async fn fetched(from: BlobSource, source: &Source) -> Result<Vec<u8>, BlobError> {
        let blobs = Blobs::new(from).unwrap();
        let (sink, mut end) = tokio::io::duplex(1024);
        let mut content = Vec::new();
        let (copied, read) = tokio::join!(blobs.copy(source, sink), end.read_to_end(&mut content));
        read.unwrap();
        copied.map(|()| content)
    }

    fn stored(name: &BlobHash, content: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(&name.as_str()[..2])).unwrap();
        std::fs::write(dir.path().join(&name.as_str()[..2]).join(name.as_str()), content).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_blob_comes_whole_or_with_an_error() {
        let content = vec![7; 300_000];
        let good = source(&content);
        let dir = stored(&good.blob, &content);
        assert_eq!(fetched(BlobSource::Dir(dir.path().to_owned()), &good).await.unwrap(), content);

        let dir = stored(&good.blob, &content[1..]);
        let error = fetched(BlobSource::Dir(dir.path().to_owned()), &good).await.unwrap_err().to_string();
        assert!(error.contains("its bytes have the hash"), "{error}");

        let short = Source { bytes: 10, ..source(&content[1..]) };
        let dir = stored(&short.blob, &content[1..]);
        let error = fetched(BlobSource::Dir(dir.path().to_owned()), &short).await.unwrap_err().to_string();
        assert!(error.contains("longer than its 10 bytes"), "{error}");

        let error = fetched(BlobSource::Dir(dir.path().to_owned()), &source(b"other")).await.unwrap_err().to_string();
        assert!(error.contains(source(b"other").blob.as_str()), "{error}");
    }

    #[tokio::test]
    async fn a_blob_over_http_needs_its_token() {
        use axum::http::{HeaderMap, StatusCode};
        let content = vec![9; 200_000];
        let served = content.clone();
        let blob = |headers: HeaderMap| async move {
            let known = headers.get("authorization").is_some_and(|value| value == "Bearer secret");
            if known { Ok(served) } else { Err(StatusCode::UNAUTHORIZED) }
        };
        let router = axum::Router::new().route("/v1/blobs/{hash}", axum::routing::get(blob));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let coordinator = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });

        let from = |token: Option<&str>| BlobSource::Http {
            coordinator: coordinator.clone(),
            token: token.map(ToOwned::to_owned),
        };
        assert_eq!(fetched(from(Some("secret")), &source(&content)).await.unwrap(), content);
        let error = fetched(from(None), &source(&content)).await.unwrap_err().to_string();
        assert!(error.contains("401"), "{error}");
        assert!(!format!("{:?}", from(Some("secret"))).contains("secret"));
        server.abort();
    }

    #[tokio::test]
    async fn a_token_goes_to_nobody_else_and_half_a_blob_is_an_error() {
        use tokio::io::AsyncWriteExt as _;
        // Two coordinators: one sends on to the other, which cuts the answer short.
        let [first, other] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [to_first, to_other] = [&first, &other].map(|at| format!("http://{}", at.local_addr().unwrap()));
        let redirect = format!("HTTP/1.1 307 Elsewhere\r\nlocation: {to_other}/x\r\ncontent-length: 0\r\n\r\n");
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_owned();
        let served = [(first, redirect), (other, half)].map(|(listener, answer)| {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tokio::spawn(async move {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut asked = [0; 4096];
                assert!(connection.read(&mut asked).await.unwrap() > 0);
                connection.write_all(answer.as_bytes()).await.unwrap();
            })
        });
        let from = |coordinator: &str| BlobSource::Http {
            coordinator: coordinator.to_owned(),
            token: Some("secret".to_owned()),
        };
        let content = source(b"half a blob");
        let error = fetched(from(&to_first), &content).await.unwrap_err().to_string();
        assert!(error.contains("307") && !error.contains("secret"), "{error}");
        assert!(!served[1].is_finished(), "nobody asked there");
        let error = fetched(from(&to_other), &content).await.unwrap_err().to_string();
        assert!(!error.contains("have the hash"), "told as what it is: {error}");
        for server in served {
            server.await.unwrap();
        }
    }
}
