//! A way to an Engine that can be closed: it then takes everything and answers nothing.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct Tap {
    open: Arc<AtomicBool>,
}

impl Tap {
    /// Forwards what connects to `socket` to the Engine at `unix://…`. Its threads end with the process.
    pub fn open(socket: &Path, engine: &str) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let engine = engine.strip_prefix("unix://").unwrap().to_owned();
        let open = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&engine).unwrap());
                pump(client.try_clone().unwrap(), server.try_clone().unwrap(), Arc::clone(&seen));
                pump(server, client, Arc::clone(&seen));
            }
        });
        Self { open }
    }

    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }
}

fn pump(mut from: UnixStream, mut to: UnixStream, open: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if !open.load(Ordering::SeqCst) {
                // Neither forwarded nor closed.
                std::mem::forget((from, to));
                return;
            }
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                let _ = to.shutdown(std::net::Shutdown::Write);
                return;
            }
        }
    });
}
