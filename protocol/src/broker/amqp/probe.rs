//! Who answers there: the first frame of AMQP, before any credentials.
//!
//! Lapin keeps the server's properties to itself, and we need the version (`declare`). It also
//! starts a thread per try that stays for as long as a server that accepts and says nothing: so
//! lapin is only sent where this has been answered.

use std::io;
use std::pin::Pin;

use futures_io::{AsyncRead, AsyncWrite};
use lapin::protocol::{AMQPClass, connection, parse_class};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;

/// AMQP 0-9-1, as a client begins.
const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// A method frame: type 1, channel 0, then the size of what follows.
const FRAME_HEADER_BYTES: usize = 7;

/// RabbitMQ's first frame has about 500 bytes; whoever announces more speaks something else.
const FIRST_FRAME_BYTES_MAX: u32 = 64 * 1024;

/// What a broker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// `RabbitMQ`.
    pub product: String,
    /// `3.10.8`.
    pub version: String,
}

impl ServerInfo {
    /// The first number of the version; 0 if it has none.
    pub(super) fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }

    fn from_properties(properties: &FieldTable) -> Self {
        let text = |key: &str| match properties.inner().get(key) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            _ => String::new(),
        };
        Self { product: text("product"), version: text("version") }
    }
}

/// Connects, reads the server's first frame and hangs up.
pub(super) async fn ask(uri: &AMQPUri) -> io::Result<ServerInfo> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let mut stream = uri.connect_with_config_async(OwnedTLSConfig::default().as_ref(), &runtime).await?;
    write_all(Pin::new(&mut stream), &PROTOCOL_HEADER).await?;
    let mut header = [0; FRAME_HEADER_BYTES];
    read_exact(Pin::new(&mut stream), &mut header).await?;
    let [kind, 0, 0, size @ ..] = header else { return Err(not_amqp()) };
    let size = u32::from_be_bytes(size);
    if kind != 1 || size > FIRST_FRAME_BYTES_MAX {
        return Err(not_amqp());
    }
    let mut payload = vec![0; size as usize];
    read_exact(Pin::new(&mut stream), &mut payload).await?;
    match parse_class(payload.as_slice()) {
        Ok((_, AMQPClass::Connection(connection::AMQPMethod::Start(start)))) => {
            Ok(ServerInfo::from_properties(&start.server_properties))
        }
        _ => Err(not_amqp()),
    }
}

fn not_amqp() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "whoever answers there does not speak AMQP 0-9-1")
}

async fn write_all<S: AsyncWrite>(mut stream: Pin<&mut S>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::future::poll_fn(|context| stream.as_mut().poll_write(context, bytes)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    std::future::poll_fn(|context| stream.as_mut().poll_flush(context)).await
}

async fn read_exact<S: AsyncRead>(mut stream: Pin<&mut S>, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::future::poll_fn(|context| stream.as_mut().poll_read(context, buffer)).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => buffer = &mut buffer[read..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_the_first_number() {
        let of = |version: &str| ServerInfo { product: "RabbitMQ".to_owned(), version: version.to_owned() }.major();
        assert_eq!((of("3.10.8"), of("4.1.0-rc.1"), of("")), (3, 4, 0));
    }
}
