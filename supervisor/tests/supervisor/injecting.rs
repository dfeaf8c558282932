//! Tars: what becomes of them, and what they may not do.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};

use longshore_supervisor::wire::{
    FromSupervisor, Inject, InjectFailed, ToSupervisor, Whose, encode, encode_inject_data,
};
use tar::{Builder, EntryType, Header};

use crate::sandbox::{Sandbox, Worker, sh};

/// Name, kind, content or where a link points.
type Raw<'a> = (&'a str, EntryType, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

/// A tar of raw entries: names as they are, even those that a builder would refuse.
fn tar_of(entries: &[Raw<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, data) in entries {
        let content = if *kind == FILE { data.as_bytes() } else { b"" };
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4751);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_uid(77);
        header.set_gid(77);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if *kind != FILE {
            header.as_mut_bytes()[157..157 + data.len()].copy_from_slice(data.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Sends it in uneven pieces.
fn inject(worker: &mut Worker, target: &str, user: &str, tar: &[u8]) -> Result<(), InjectFailed> {
    let mut bytes = Vec::new();
    let user = (!user.is_empty()).then(|| user.to_owned());
    encode(&ToSupervisor::Inject(Inject { target: target.to_owned(), user }), &mut bytes).unwrap();
    for piece in tar.chunks(1000) {
        encode_inject_data(piece, &mut bytes).unwrap();
    }
    encode(&ToSupervisor::InjectEnd, &mut bytes).unwrap();
    worker.stream.write_all(&bytes).unwrap();
    match worker.next() {
        FromSupervisor::Injected => Ok(()),
        FromSupervisor::InjectFailed(failed) => Err(failed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_go_beneath_the_target_and_belong_to_the_user() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let tar = tar_of(&[
        ("./", DIR, ""),
        ("./a", FILE, "content"),
        ("d/", DIR, ""),
        ("d//./b", FILE, ""),
        ("made/for/c", FILE, "c"),
        ("l", SYMLINK, "../../etc"),
        ("h", LINK, "./a"),
        ("p", EntryType::Fifo, ""),
    ]);
    inject(&mut worker, "/w/src", "me", &tar).unwrap();
    let script = "cd /w; find . /w -printf '%p %y %m %U:%G %Ts %l\\n' | grep -v ^/w/ | sed 's/ $//' | sort; cat src/h; \
                  [ src/a -ef src/h ] && echo same";
    let said = worker.script(script);
    for line in [
        "/w d 755 1000:1001",
        "./src d 755 1000:1001",
        "./src/a f 4751 1000:1001 1000000000",
        "./src/d d 4751 1000:1001 1000000000",
        "./src/d/b f 4751 1000:1001 1000000000",
        "./src/h f 4751 1000:1001 1000000000",
        "./src/l l 777 1000:1001 1000000000 ../../etc",
        "./src/made d 755 1000:1001",
        "./src/made/for d 755 1000:1001",
        "./src/made/for/c f 4751 1000:1001 1000000000",
        "./src/p p 4751 1000:1001 1000000000",
    ] {
        assert!(said.lines().any(|found| found.starts_with(line)), "{line} is not in\n{said}");
    }
    assert!(said.ends_with("contentsame\n"), "{said}");
}

#[test]
fn what_is_there_is_replaced_and_directories_are_merged() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "
        mkdir -p /w/dir/old /w/tree/below; echo old >/w/dir/kept; echo old >/w/file; touch /w/becomes; chmod 700 /w
        ln /w/file /w/other-name; ln -s /etc/passwd /w/link; ln -s /etc /w/dirlink; mkdir /real; ln -s /real /alias";
    assert_eq!(worker.script(script), "");
    let tar = tar_of(&[
        ("./", DIR, ""),
        ("dir", DIR, ""),
        ("dir/new", FILE, "new"),
        ("file", FILE, "new"),
        ("link", FILE, "new"),
        ("dirlink", DIR, ""),
        ("dirlink/passwd", FILE, "new"),
        ("tree", FILE, "new"),
        ("becomes", DIR, ""),
        ("becomes/file", FILE, "new"),
    ]);
    inject(&mut worker, "/w", "", &tar).unwrap();
    let script = "cd /w; cat dir/kept dir/new file other-name link dirlink/passwd tree becomes/file | tr '\\n' ' '; \
                  echo; stat -c %a /w; find link dirlink -printf %y; cat /etc/passwd";
    // The other name of a file that is replaced is the old file's; the target keeps its mode.
    let passwd = crate::sandbox::PASSWD;
    assert_eq!(worker.script(script), format!("old newnewold newnewnewnew\n700\nfdf{passwd}"));
    // A link on the way to the target is followed, in the container.
    inject(&mut worker, "/alias/sub", "", &tar_of(&[("x", FILE, "x")])).unwrap();
    assert_eq!(worker.script("cat /real/sub/x"), "x");
}

#[test]
fn what_leads_out_of_the_target_is_refused() {
    let sandbox = Sandbox::start();
    symlink("/etc", sandbox.path("/tmp/out")).unwrap();
    symlink("/etc/passwd", sandbox.path("/tmp/file-out")).unwrap();
    let (mut worker, _) = sandbox.accept();
    for bad in [
        &[("/etc/evil", FILE, "x")][..],
        &[("../etc/evil", FILE, "x")],
        &[("a/../../etc/evil", FILE, "x")],
        &[("h", LINK, "/etc/passwd")],
        &[("h", LINK, "../etc/passwd")],
        &[("h", LINK, "out/passwd")],
        &[("h", LINK, "no-such-file")],
        &[("l", SYMLINK, "/etc"), ("l/evil", FILE, "x")],
        &[("l", SYMLINK, "/etc"), ("l/sub/evil", DIR, "")],
        &[("l", SYMLINK, "/etc"), ("h", LINK, "l/passwd")],
        &[("l", SYMLINK, "/etc"), ("m", LINK, "l"), ("m/evil", FILE, "x")],
        &[("out/evil", FILE, "x")],
        &[("out/evil", DIR, "")],
        &[("file-out/evil", FILE, "x")],
        &[("sda", EntryType::Block, "")],
        &[("tty", EntryType::Char, "")],
        &[("what", EntryType::new(b'Z'), "")],
        &[("", FILE, "x")],
    ] {
        let failed = inject(&mut worker, "/tmp", "", &tar_of(bad)).unwrap_err();
        assert_eq!(failed.whose, Whose::Refused, "{bad:?}: {failed:?}");
    }
    for target in ["relative", "", "/tmp/../etc", "/etc/passwd", "/etc/passwd/below", "/dev/null/x"] {
        let failed = inject(&mut worker, target, "", &tar_of(&[("x", FILE, "x")])).unwrap_err();
        assert_eq!(failed.whose, Whose::Refused, "{target}: {failed:?}");
    }
    let failed = inject(&mut worker, "/tmp", "nosuch", &tar_of(&[("x", FILE, "x")])).unwrap_err();
    assert_eq!(failed.whose, Whose::Refused);
    // A link of the tar that is no link any more is none.
    inject(&mut worker, "/tmp", "", &tar_of(&[("l", SYMLINK, "/etc"), ("l", DIR, ""), ("l/fine", FILE, "x")])).unwrap();
    assert_eq!(
        worker.script("ls -A /etc; cat /tmp/l/fine; cat /tmp/out/passwd | head -c4"),
        "group\nhosts\npasswd\nxroot"
    );
}

#[test]
fn a_tar_that_was_cut_is_told() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let whole = tar_of(&[("a", FILE, &"x".repeat(2000)), ("b", FILE, "y")]);
    for cut in [0, 100, 512, 700, 512 + 2048, 512 + 2048 + 100, 512 + 2048 + 512 + 512] {
        let failed = inject(&mut worker, "/w", "", &whole[..cut]).unwrap_err();
        assert_eq!(failed.whose, Whose::Input, "{cut}: {failed:?}");
    }
    assert_eq!(inject(&mut worker, "/w", "", &[b'x'; 5000]).unwrap_err().whose, Whose::Input);
    inject(&mut worker, "/w", "", &[&whole[..], &vec![0; 100_000]].concat()).unwrap();
    assert_eq!(worker.script("wc -c /w/a"), "2000 /w/a\n");
}

#[test]
fn long_names_capabilities_and_sizes_survive() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let long = format!("{}/file", ["directory-with-a-name"; 30].join("/"));
    let link = format!("elsewhere/{long}");
    let mut header = Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(3);
    header.set_mtime(7);
    let mut builder = Builder::new(Vec::new());
    // cap_net_bind_service, permitted and effective, as the kernel keeps it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let user = ("SCHILY.xattr.user.note", &b"kept"[..]);
    builder.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..]), user]).unwrap();
    builder.append_data(&mut header.clone(), &long, &b"abc"[..]).unwrap();
    header.set_entry_type(SYMLINK);
    header.set_size(0);
    builder.append_link(&mut header, "l", &link).unwrap();
    let tar = builder.into_inner().unwrap();
    inject(&mut worker, "/w", "me", &tar).unwrap();
    assert_eq!(worker.script(&format!("cat /w/{long}; readlink /w/l")), format!("abc{link}\n"));
    let path = sandbox.path(&format!("/w/{long}"));
    let mut kept = [0; 64];
    let read = rustix::fs::getxattr(&path, "security.capability", &mut kept[..]).unwrap();
    assert_eq!(kept[..read], capability);
    assert_eq!((fs::metadata(&path).unwrap().uid(), fs::metadata(&path).unwrap().mtime()), (1000, 7));
}

#[test]
fn a_failure_is_told_before_the_rest_has_come_and_the_rest_is_thrown_away() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.send(&ToSupervisor::Inject(Inject { target: "/w".to_owned(), user: None }));
    worker.send(&ToSupervisor::InjectData(tar_of(&[("../x", FILE, "x")])));
    assert!(matches!(worker.next(), FromSupervisor::InjectFailed(_)));
    worker.send(&ToSupervisor::InjectData(vec![0xff; 100_000]));
    worker.send(&ToSupervisor::InjectEnd);
    assert_eq!(worker.script("echo fine"), "fine\n");
}

#[test]
fn a_worker_that_goes_in_the_middle_of_a_tar_may_come_back() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let tar = tar_of(&[("a", FILE, &"x".repeat(5000)), ("b", FILE, "y")]);
    worker.send(&ToSupervisor::Inject(Inject { target: "/w".to_owned(), user: None }));
    worker.send(&ToSupervisor::InjectData(tar[..2000].to_vec()));
    drop(worker);
    let (mut worker, _) = sandbox.accept();
    inject(&mut worker, "/w", "", &tar).unwrap();
    assert_eq!(worker.script("wc -c </w/a; cat /w/b"), "5000\ny");
}

#[test]
fn an_end_does_not_wait_for_a_tar() {
    let mut sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.send(&ToSupervisor::Inject(Inject { target: "/w".to_owned(), user: None }));
    worker.send(&ToSupervisor::End);
    assert_eq!(sandbox.exit_status().code(), Some(0));
}

#[test]
fn nothing_is_injected_beside_a_command() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/go");
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "read x </tmp/go"));
    let failed = inject(&mut worker, "/w", "", &tar_of(&[("a", FILE, "x")])).unwrap_err();
    assert_eq!(failed.whose, Whose::Io);
    sandbox.tell("/tmp/go");
    worker.finish();
}

#[test]
fn a_large_file_takes_no_memory() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let size = 100 << 20;
    let mut header = Header::new_gnu();
    header.set_path("large").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    worker.send(&ToSupervisor::Inject(Inject { target: "/w".to_owned(), user: None }));
    worker.send(&ToSupervisor::InjectData(header.as_bytes().to_vec()));
    let mut piece = Vec::new();
    encode_inject_data(&vec![b'x'; 64 * 1024], &mut piece).unwrap();
    for _ in 0..size / (64 * 1024) {
        worker.stream.write_all(&piece).unwrap();
    }
    worker.send(&ToSupervisor::InjectData(vec![0; 1024]));
    worker.send(&ToSupervisor::InjectEnd);
    assert_eq!(worker.next(), FromSupervisor::Injected);
    let said = worker.script("stat -c %s /w/large; grep VmHWM /proc/1/status");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[0], size.to_string());
    assert!(words[2].parse::<u64>().unwrap() < 16 << 10, "{said}");
}
