//! Files from outside.

use std::io::Cursor;

use longshore_worker::engine::{ContainerName, Engine, EngineError, ErrorClass};

use crate::bench::{Bench, read, tar_of};

pub async fn injected_files_are_there<E: Engine>(bench: Bench<E>) {
    let long = format!("{}/file", ["a-directory-with-a-long-name"; 9].join("/"));
    let tar = tar_of(&[("./", ""), ("a", "first\n"), ("sub/", ""), ("sub/b", "second\n"), (&long, "deep\n")]);
    let script = format!("cat /new/place/a /new/place/sub/b; cat /new/place/{long}; cat /tmp/a");
    let spec = bench.spec(&script);
    bench.create(&spec).await;
    bench.engine.inject(&spec.name, None, "/new/place", Cursor::new(tar)).await.unwrap();
    // Again, into a directory that is there, and over what is there.
    let again = tar_of(&[("a", "again\n")]);
    bench.engine.inject(&spec.name, None, "/tmp/", Cursor::new(again.clone())).await.unwrap();
    bench.engine.inject(&spec.name, None, "/new/place", Cursor::new(again)).await.unwrap();
    let ran = read(bench.start(&spec).await).await;
    assert_eq!(ran.text(), "again\nsecond\ndeep\nagain\n", "{ran:?}");
    bench.clean().await;
}

pub async fn injecting_does_not_leave_the_target<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("true");
    bench.create(&spec).await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    builder.append_link(&mut header, "link", "/etc").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(1);
    builder.append_data(&mut header, "link/passwd", &b"x"[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    let error = bench.engine.inject(&spec.name, None, "/target", Cursor::new(tar)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
    for target in ["relative", "/up/../there", ""] {
        let tar = Cursor::new(tar_of(&[("a", "x")]));
        let error = bench.engine.inject(&spec.name, None, target, tar).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Request, "{target}: {error:?}");
    }
    let nowhere = ContainerName::of(&bench.fence());
    let error = bench.engine.inject(&nowhere, None, "/target", Cursor::new(tar_of(&[("a", "x")]))).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    bench.clean().await;
}

pub async fn a_broken_tar_is_the_inputs_fault<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("true");
    bench.create(&spec).await;
    let tar = tar_of(&[("a", &"x".repeat(300_000)), ("b", "y")]);
    for cut in [0, 100, 1000, 200_000] {
        let error = bench.engine.inject(&spec.name, None, "/in", Cursor::new(tar[..cut].to_vec())).await.unwrap_err();
        assert!(matches!(error, EngineError::Input { .. }), "{cut}: {error:?}");
    }
    // A reader that fails in the middle, in its own words.
    let (mut broken, reader) = tokio::io::duplex(1024);
    let feed = tokio::spawn(async move {
        tokio::io::AsyncWriteExt::write_all(&mut broken, &tar[..700]).await.unwrap();
    });
    let failing = tokio::io::AsyncReadExt::chain(reader, Failing);
    let error = bench.engine.inject(&spec.name, None, "/in", failing).await.unwrap_err();
    assert!(matches!(&error, EngineError::Input { reason } if reason.contains("hash")), "{error:?}");
    feed.await.unwrap();
    bench.clean().await;
}

struct Failing;

impl tokio::io::AsyncRead for Failing {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("the hash is wrong")))
    }
}
