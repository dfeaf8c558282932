//! One address for several coordinators, which sends on to the one that leads.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How often each is asked whether it is ready. A tenth of a takeover.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// One that is frozen says nothing.
const ANSWER: Duration = Duration::from_millis(500);

/// One that nobody has followed is given up when it left so many questions unanswered: on a machine that is busy, an
/// answer may take longer.
const SILENT_MAX: u32 = 6;

/// Sends on until it is dropped.
#[derive(Debug)]
pub struct Front {
    ready: watch::Receiver<Option<usize>>,
    _ends: DropGuard,
}

impl Front {
    /// Listens at `address` and sends on to whichever of these is ready.
    ///
    /// # Panics
    /// If it cannot listen there.
    pub async fn open(address: &str, behind: Vec<String>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|e| panic!("{address}: {e}"));
        let (says, ready) = watch::channel(None);
        let ends = CancellationToken::new();
        let behind = Arc::new(behind);
        tokio::spawn(ends.clone().run_until_cancelled_owned(look(Arc::clone(&behind), says)));
        tokio::spawn(ends.clone().run_until_cancelled_owned(accept(listener, behind, ready.clone())));
        Self { ready, _ends: ends.drop_guard() }
    }

    /// Which of them is ready, as it changes.
    pub fn ready(&self) -> watch::Receiver<Option<usize>> {
        self.ready.clone()
    }
}

async fn look(behind: Arc<Vec<String>>, says: watch::Sender<Option<usize>>) {
    let client = Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(ANSWER).build().expect("no TLS");
    let mut interval = tokio::time::interval(LOOK);
    let mut unanswered = 0;
    loop {
        interval.tick().await;
        let said = futures_util::future::join_all(behind.iter().map(|address| leads(&client, address))).await;
        let is_leading = |seat: &usize| matches!(said[*seat], Ok(true));
        let is_silent = |seat: &usize| said[*seat].as_ref().is_err_and(reqwest::Error::is_timeout);
        let known = *says.borrow();
        unanswered = if known.as_ref().is_some_and(is_silent) { unanswered + 1 } else { 0 };
        // Two may say so for a moment: one that was frozen does not know yet that it was succeeded.
        let stays = known.filter(is_leading);
        let leading = || (0..said.len()).find(is_leading);
        let ready =
            stays.or_else(leading).or_else(|| known.filter(|known| is_silent(known) && unanswered < SILENT_MAX));
        says.send_if_modified(|known| std::mem::replace(known, ready) != ready);
    }
}

/// One that stands by is ready as well: a test wants to know who leads.
async fn leads(client: &Client, address: &str) -> reqwest::Result<bool> {
    let answer = client.get(format!("http://{address}/readyz")).send().await?;
    let ready = answer.status().is_success();
    let what: serde_json::Value = answer.json().await?;
    Ok(ready && what["leading"] == true)
}

async fn accept(listener: TcpListener, behind: Arc<Vec<String>>, ready: watch::Receiver<Option<usize>>) {
    // They end with this task.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(send_on(client, Arc::clone(&behind), ready.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Waits for one that is ready; the connection ends when that one no longer is.
async fn send_on(mut client: TcpStream, behind: Arc<Vec<String>>, mut ready: watch::Receiver<Option<usize>>) {
    let Ok(Some(chosen)) = ready.wait_for(Option::is_some).await.map(|ready| *ready) else { return };
    let Ok(mut server) = TcpStream::connect(&behind[chosen]).await else { return };
    let over = ready.wait_for(|now| *now != Some(chosen));
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = over => {}
    }
}
