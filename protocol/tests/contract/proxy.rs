//! A TCP proxy whose forwarding can be cut and frozen: an outage that starts and ends when a test says so.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// Nothing is forwarded and nothing closed.
    Frozen,
}

pub struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
    tries: watch::Receiver<u32>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    pub async fn start(target: String, way: Way) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, seen) = watch::channel(way);
        let (count, tries) = watch::channel(0);
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, target, seen, count)));
        Self { port, way, tries, _task: task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// How often somebody has connected, in vain or not.
    pub fn tried(&self) -> u32 {
        *self.tries.borrow()
    }

    /// Waits until somebody has connected so often in all.
    pub async fn until_tried(&self, times: u32) {
        self.tries.clone().wait_for(|tries| *tries >= times).await.unwrap();
    }
}

async fn accept(listener: TcpListener, target: String, way: watch::Receiver<Way>, count: watch::Sender<u32>) {
    let mut pumps = tokio::task::JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        count.send_modify(|count| *count += 1);
        if *way.borrow() == Way::Cut {
            continue;
        }
        let Ok(server) = TcpStream::connect(&target).await else { continue };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        pumps.spawn(pump(from_client, to_server, way.clone()));
        pumps.spawn(pump(from_server, to_client, way.clone()));
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let now = *way.borrow_and_update();
        let read = tokio::select! {
            _ = way.changed() => continue,
            read = from.read(&mut buffer), if now == Way::Open => read,
            () = std::future::ready(()), if now == Way::Cut => return,
        };
        match read {
            Ok(count) if count > 0 && to.write_all(&buffer[..count]).await.is_ok() => {}
            _ => return,
        }
    }
}
