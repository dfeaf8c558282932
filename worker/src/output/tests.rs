use bytes::Bytes;

use super::*;
use crate::disk::spool;
use crate::spools::{OWN_BYTES, Spools};

const AMPLE: Bounds = Bounds { held: 1 << 30, taken: 1 << 30 };

/// Of more room than any test needs.
fn share() -> Arc<Share> {
    Spools::of(1 << 32).share()
}

fn piece(stream: Stream, bytes: impl Into<Bytes>) -> Piece {
    Piece { stream, at_ms: 7, bytes: bytes.into() }
}

/// What the spool's reader would send.
fn sent(path: &Path, spooled: &watch::Sender<Spooled>) -> Vec<Run> {
    let file = File::open(path).unwrap();
    let to = spooled.borrow().bytes;
    let (mut at, mut runs) = (Place::default(), Vec::new());
    while at.position < to {
        let chunk = spool::read(&file, at, to).unwrap();
        assert!(!chunk.torn);
        at = chunk.next;
        runs.extend(chunk.runs);
    }
    runs
}

fn end_of(runs: &[Run], stream: Stream) -> u64 {
    runs.iter().filter(|run| run.stream == stream).map(Run::end).max().unwrap_or(0)
}

/// Answers how much of the command's output is on the disk for good.
async fn drained(spool: &mut Spool, pieces: Vec<Piece>) -> io::Result<Offsets> {
    let (sender, output) = mpsc::channel(1);
    // Whoever sends must never wait for room that does not come: both ends run to the end.
    let sending = async {
        for piece in pieces {
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let read = watch::Sender::default();
    tokio::join!(spool.drain(output, &read, None, CancellationToken::new()), sending).0?;
    let read = *read.borrow();
    Ok(read)
}

#[tokio::test]
async fn p15_too_much_output_is_read_all_the_same_and_what_is_missing_is_counted_per_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), Bounds { taken: 100_000, ..AMPLE }).await.unwrap();
    let long = |stream| piece(stream, vec![b'x'; 50_000]);
    let pieces = [vec![long(Stream::Stdout); 5], vec![long(Stream::Stderr)]].concat();
    // P16: what is left out is done with as well, or the command would block behind it for ever.
    assert_eq!(drained(&mut spool, pieces).await.unwrap(), Offsets { stdout: 250_000, stderr: 50_000 });
    let end = spool.finish().await.unwrap();
    let runs = sent(&path, &spooled);
    // P14: what is told is what is sent.
    assert_eq!(end, Offsets { stdout: end_of(&runs, Stream::Stdout), stderr: end_of(&runs, Stream::Stderr) });
    assert_eq!(end.stdout, 100_000);
    let marker = String::from_utf8(runs.last().unwrap().bytes.clone()).unwrap();
    assert!(marker.contains("150000 bytes of stdout and 50000 of stderr"), "{marker}");
}

#[tokio::test]
async fn a_file_is_made_with_the_first_line_and_what_was_there_before_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    std::fs::write(&path, "of an attempt that is forgotten").unwrap();
    let spooled = watch::Sender::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), AMPLE).await.unwrap();
    assert_eq!((spool.finish().await.unwrap(), path.exists()), (Offsets::default(), false));
    // P10: so a restart finds none.
    let [_, found] = spool::recover(&path).unwrap();
    assert_eq!(found, Place::default());
    let mut spool = Spool::resume(&path, found, spooled.clone(), share(), AMPLE).await.unwrap();
    drained(&mut spool, vec![piece(Stream::Stdout, "one\n")]).await.unwrap();
    assert_eq!(end_of(&sent(&path, &spooled), Stream::Stdout), 4);
}

#[tokio::test]
async fn p14_many_short_lines_come_whole_and_are_not_held_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), AMPLE).await.unwrap();
    let pieces = vec![piece(Stream::Stdout, vec![b'\n'; 64 * 1024]); OUTPUT_PIECES_MAX];
    // How much is held at once is asserted where it is written.
    spool.take(&mut pieces.clone(), &watch::Sender::default(), None).await.unwrap();
    let end = spool.finish().await.unwrap();
    assert_eq!(end.stdout, (64 * 1024 * OUTPUT_PIECES_MAX) as u64);
    assert_eq!(sent(&path, &spooled).iter().map(Run::count).sum::<u64>(), end.stdout);
}

#[tokio::test]
async fn p14_what_could_not_be_written_is_not_promised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), AMPLE).await.unwrap();
    drained(&mut spool, vec![piece(Stream::Stdout, "kept\n")]).await.unwrap();
    // A disk that takes no more.
    spool.file = Some(Arc::new(File::options().write(true).open("/dev/full").unwrap()));
    drained(&mut spool, vec![piece(Stream::Stdout, "lost\n")]).await.unwrap_err();
    // It takes some again: behind a hole nothing may be written.
    spool.file = Some(Arc::new(File::options().append(true).open(&path).unwrap()));
    spool.note("never").await.unwrap_err();
    spool.finish().await.unwrap_err();
    assert_eq!(spool.written(), Offsets { stdout: 5, stderr: 0 });
    assert_eq!(end_of(&sent(&path, &spooled), Stream::Stdout), 5);
}

#[tokio::test]
async fn p16_only_whole_lines_are_acknowledged_and_a_restart_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), AMPLE).await.unwrap();
    spool.note("ours").await.unwrap();
    let half = vec![piece(Stream::Stderr, "one\ntw"), piece(Stream::Stdout, "out")];
    let read = drained(&mut spool, half).await.unwrap();
    assert_eq!(read, Offsets { stdout: 0, stderr: 4 });
    drop(spool);

    let [_, found] = spool::recover(&path).unwrap();
    assert_eq!(found.read(), read, "the rest is asked for again");
    let mut spool = Spool::resume(&path, found, spooled.clone(), share(), AMPLE).await.unwrap();
    let rest = vec![piece(Stream::Stderr, "two\n"), piece(Stream::Stdout, "out\n")];
    assert_eq!(drained(&mut spool, rest).await.unwrap(), Offsets { stdout: 4, stderr: 8 });
    let end = spool.finish().await.unwrap();
    let runs = sent(&path, &spooled);
    assert_eq!(end, Offsets { stdout: 4, stderr: end_of(&runs, Stream::Stderr) });
    let texts: Vec<_> = runs.iter().map(|run| String::from_utf8_lossy(&run.bytes).into_owned()).collect();
    assert_eq!(texts, ["longshore: ours\n", "one\n", "two\n", "out\n"]);
    assert_eq!(runs[1].at_ms, 7, "when it was read from the pipe");
}

#[tokio::test]
async fn p15_once_something_is_missing_nothing_more_is_taken_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), Bounds { taken: 10, ..AMPLE }).await.unwrap();
    let read = drained(&mut spool, vec![piece(Stream::Stdout, "0123456789abcdef")]).await.unwrap();
    assert_eq!(read.stdout, 16);
    drop(spool);
    let [_, found] = spool::recover(&path).unwrap();
    assert_eq!((found.offsets.stdout, found.read().stdout), (10, 16));
    let mut spool = Spool::resume(&path, found, spooled.clone(), share(), Bounds { taken: 10, ..AMPLE }).await.unwrap();
    assert_eq!(drained(&mut spool, vec![piece(Stream::Stdout, "more\n")]).await.unwrap().stdout, 21);
    let end = spool.finish().await.unwrap();
    assert_eq!(end.stdout, 10);
    let marker = String::from_utf8(sent(&path, &spooled).last().unwrap().bytes.clone()).unwrap();
    assert!(marker.contains("11 bytes of stdout and 0 of stderr"), "{marker}");
}

#[tokio::test]
async fn p15_a_full_spool_makes_its_command_wait_until_some_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::<Spooled>::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), Bounds { held: 1000, ..AMPLE }).await.unwrap();
    let (sender, output) = mpsc::channel(1);
    let read = watch::Sender::default();
    let sending = async move {
        for _ in 0..40 {
            sender.send(piece(Stream::Stdout, [&[b'x'; 99][..], b"\n"].concat())).await.unwrap();
        }
    };
    let mut written = spooled.subscribe();
    let giving = async {
        // It stands at the bound, and is given back part by part.
        while written.wait_for(|now| now.held() >= 1000).await.is_ok_and(|now| now.bytes < 40 * 126) {
            spooled.send_modify(|now| now.freed += 400);
        }
    };
    let waits = CancellationToken::new();
    let draining = spool.drain(output, &read, Some(&waits), CancellationToken::new());
    tokio::select! {
        drained = async { tokio::join!(draining, sending).0 } => drained.unwrap(),
        () = giving => panic!("nothing more was written"),
    }
    assert!(spooled.borrow().held() < 1000 + 126);
    assert_eq!(spool.finish().await.unwrap(), Offsets { stdout: 4000, stderr: 0 });
}

#[tokio::test]
async fn p15_what_an_ended_command_has_on_its_way_is_taken_into_a_full_spool() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let spooled = watch::Sender::<Spooled>::default();
    let mut spool = Spool::create(&path, spooled.clone(), share(), Bounds { held: 1000, ..AMPLE }).await.unwrap();
    let (sender, output) = mpsc::channel(40);
    for _ in 0..40 {
        sender.try_send(piece(Stream::Stdout, [&[b'x'; 99][..], b"\n"].concat())).unwrap();
    }
    drop(sender);
    let (read, waits) = (watch::Sender::default(), CancellationToken::new());
    let mut written = spooled.subscribe();
    let ended = async {
        written.wait_for(|now| now.held() >= 900).await.unwrap();
        waits.cancel();
    };
    tokio::join!(spool.drain(output, &read, Some(&waits), CancellationToken::new()), ended).0.unwrap();
    assert_eq!(spool.finish().await.unwrap(), Offsets { stdout: 4000, stderr: 0 }, "nothing is missing");
}

#[tokio::test]
async fn p15_a_full_spool_whose_command_cannot_wait_leaves_the_rest_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let waits = CancellationToken::new();
    for (waits, kept) in [(None, false), (Some(&waits), true)] {
        let spooled = watch::Sender::new(Spooled { kept, ..Spooled::default() });
        let mut spool = Spool::create(&path, spooled.clone(), share(), Bounds { held: 1000, ..AMPLE }).await.unwrap();
        let (sender, output) = mpsc::channel(40);
        for _ in 0..40 {
            sender.try_send(piece(Stream::Stdout, [&[b'x'; 99][..], b"\n"].concat())).unwrap();
        }
        drop(sender);
        let read = watch::Sender::default();
        spool.drain(output, &read, waits, CancellationToken::new()).await.unwrap();
        assert_eq!(read.borrow().stdout, 4000);
        let end = spool.finish().await.unwrap();
        let marker = String::from_utf8(sent(&path, &spooled).last().unwrap().bytes.clone()).unwrap();
        assert!(marker.contains(&format!("{} bytes of stdout", 4000 - end.stdout)), "{marker}");
        assert!((800..1200).contains(&end.stdout), "{end:?}");
    }
}

/// P15: of two that share less room than both want, one waits until the other has given some back.
#[tokio::test]
async fn p15_a_step_that_finds_no_room_beside_others_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let spools = Spools::of(1024 * 1024);
    let other = spools.share();
    assert!(other.try_cover(OWN_BYTES + 1024 * 1024));
    let spooled = watch::Sender::default();
    let path = dir.path().join("x.log");
    let mut spool = Spool::create(&path, spooled.clone(), spools.share(), AMPLE).await.unwrap();
    let (sender, output) = mpsc::channel(1);
    let (read, never) = (watch::Sender::default(), CancellationToken::new());
    let bytes = OWN_BYTES + 512 * 1024;
    let writing = async {
        for _ in 0..bytes / 65536 {
            sender.send(piece(Stream::Stdout, vec![b'x'; 65536])).await.unwrap();
        }
        drop(sender);
    };
    let watching = async {
        spooled.subscribe().wait_for(|spooled| spooled.full).await.unwrap();
        let held = spooled.borrow().held();
        assert!(held > OWN_BYTES / 2 && held <= OWN_BYTES, "what is its own it has: {held}");
        other.shrink(0);
        spooled.subscribe().wait_for(|spooled| !spooled.full).await.unwrap();
    };
    let drained = spool.drain(output, &read, Some(&never), CancellationToken::new());
    let (drained, (), ()) = tokio::join!(drained, writing, watching);
    drained.unwrap();
    assert_eq!(spool.finish().await.unwrap().stdout, bytes, "nothing is missing");
}
