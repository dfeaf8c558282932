//! Containers' files as images.

use longshore_worker::engine::{ContainerName, Engine, EngineError, ErrorClass};

use crate::bench::{Bench, read, read_until};

pub async fn a_snapshot_hands_files_on<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.committed("mkdir -p /data/sub; echo one > /data/sub/file; rm -rf /tmp/x").await;
    // Two children of one parent do not see each other.
    for child in ["two", "three"] {
        let script = format!("echo {child} >> /data/sub/file; cat /data/sub/file");
        let spec = bench.spec_on(snapshot.as_str(), &script);
        assert_eq!(bench.run(&spec).await.text(), format!("one\n{child}\n"));
    }
    bench.clean().await;
}

pub async fn a_chain_of_snapshots_keeps_the_images_own_environment<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("echo $TOKEN > /t1; cd / || true");
    spec.command.env =
        vec![("TOKEN".to_owned(), "secret".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin:/x".to_owned())];
    spec.command.workdir = Some("/elsewhere".to_owned());
    // `cd` is a builtin of real shells only; the fake says "not found", and goes on behind the `||`.
    assert_eq!(bench.run(&spec).await.code(), 0);
    let first = bench.snapshot();
    let committed = bench.engine.commit(&spec.name, &first).await.unwrap();
    assert!(committed.bytes.is_some_and(|bytes| (7..100_000).contains(&bytes)), "{committed:?}");

    let show = "echo \"[$TOKEN] [$PATH]\"; pwd; cat /t1";
    let mut second = bench.spec(show);
    second.image = first.0;
    assert_eq!(bench.run(&second).await.text(), "[] [/usr/bin:/bin]\n/\nsecret\n");
    let snapshot = bench.snapshot();
    bench.engine.commit(&second.name, &snapshot).await.unwrap();

    let mut third = bench.spec(show);
    third.image = snapshot.0;
    third.command.env = vec![("TOKEN".to_owned(), "another".to_owned())];
    assert_eq!(bench.run(&third).await.text(), "[another] [/usr/bin:/bin]\n/\nsecret\n");
    bench.clean().await;
}

pub async fn a_snapshot_is_found_listed_and_removed<E: Engine>(bench: Bench<E>) {
    let absent = bench.snapshot();
    assert!(!bench.begun().await.snapshot_exists(&absent).await.unwrap());
    bench.engine.remove_snapshot(&absent).await.unwrap();
    let first = bench.committed("echo 1 > /first").await;
    assert!(bench.engine.snapshot_exists(&first).await.unwrap());
    assert_eq!(bench.snapshots().await, std::slice::from_ref(&first));
    bench.engine.remove_snapshot(&first).await.unwrap();
    assert!(!bench.engine.snapshot_exists(&first).await.unwrap());
    bench.clean().await;
}

pub async fn a_snapshot_in_use_can_be_removed<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.committed("echo kept > /file").await;
    let mut spec = bench.spec("cat /file");
    spec.image = snapshot.0.clone();
    bench.create(&spec).await;
    bench.engine.remove_snapshot(&snapshot).await.unwrap();
    assert!(!bench.engine.snapshot_exists(&snapshot).await.unwrap());
    assert_eq!(bench.snapshots().await, []);
    // The container has all that it was made from, and its files can still be kept.
    let ran = read(bench.start(&spec).await).await;
    assert_eq!((ran.text().as_str(), ran.code()), ("kept\n", 0));
    bench.engine.commit(&spec.name, &bench.snapshot()).await.unwrap();
    bench.clean().await;
}

pub async fn a_snapshot_can_be_replaced<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.committed("echo old > /file").await;
    let spec = bench.spec("echo new > /file");
    bench.run(&spec).await;
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    assert_eq!(bench.snapshots().await, std::slice::from_ref(&snapshot));
    let mut child = bench.spec("cat /file");
    child.image = snapshot.0;
    assert_eq!(bench.run(&child).await.text(), "new\n");
    bench.clean().await;
}

pub async fn what_runs_or_is_gone_is_not_committed<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.snapshot();
    let error = bench.begun().await.commit(&ContainerName::of(&bench.fence()), &snapshot).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    let spec = bench.spec("echo up; sleep 3600");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    let error = bench.engine.commit(&spec.name, &snapshot).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
    assert!(!bench.engine.snapshot_exists(&snapshot).await.unwrap());
    bench.clean().await;
}

/// What is the container's own: in no commit, and so with no child. Declared VOLUMEs above all.
pub async fn what_is_the_containers_own_is_not_committed<E: Engine>(bench: Bench<E>) {
    let image = bench.image(&[("/data/of-the-image", "image\n")], &["/volume", "/var/cache"]).await;
    let spec = bench.spec_on(&image, &format!("{LEAVE_OWN}; {LOOK_FOR_OWN}"));
    let mut volumes = bench.create(&spec).await.volumes;
    volumes.sort();
    assert_eq!(volumes, ["/var/cache", "/volume"]);
    assert_eq!(read(bench.start(&spec).await).await.text(), OWN_SEEN);
    let snapshot = bench.snapshot();
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    let child = bench.spec_on(snapshot.as_str(), LOOK_FOR_OWN);
    assert_eq!(bench.run(&child).await.text(), "image\nkept\n");
    bench.clean().await;
}

/// Puts something into all that is the container's own, and into what is not.
pub const LEAVE_OWN: &str = "\
    echo own > /volume/f; echo own > /var/cache/f; echo own > /dev/shm/f; echo own > /dev/f; \
    echo own >> /etc/hosts; echo own >> /etc/resolv.conf; echo kept > /data/kept";

/// Says what of it is there.
pub const LOOK_FOR_OWN: &str = "\
    [ ! -e /volume/f ] || echo a volume; [ ! -e /var/cache/f ] || echo another volume; \
    [ ! -e /dev/shm/f ] || echo shm; [ ! -e /dev/f ] || echo dev; \
    grep own /etc/hosts || :; grep own /etc/resolv.conf || :; cat /data/of-the-image /data/kept";

/// All of it.
pub const OWN_SEEN: &str = "a volume\nanother volume\nshm\ndev\nown\nown\nimage\nkept\n";
