//! What a command finds, and how it ends.

use longshore_supervisor::wire::{EndedBy, Run, State, Status, ToSupervisor};

use crate::sandbox::{Sandbox, command, progress, sh};

#[test]
fn a_command_says_something_and_ends() {
    let sandbox = Sandbox::start();
    let (mut worker, hello) = sandbox.accept();
    assert_eq!((hello.pid, hello.state, hello.clean), (1, State::Idle, true));
    let result = worker.run(&sh("1", "echo out; echo err >&2; exit 3"));
    assert_eq!((result.stdout.as_slice(), result.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!((result.exit.status, result.exit.by, result.exit.oom_killed), (Status::Code(3), EndedBy::Itself, false));
    assert!(result.exit.usage.max_rss_bytes > 100_000, "{:?}", result.exit.usage);
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.run(&sh("2", "kill -9 $$")).exit.status, Status::Signal(9));
}

#[test]
fn a_command_begins_with_nothing_of_the_supervisors() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "
        readlink /proc/self/fd/0
        cd /proc/$$/fd; for fd in *; do [ -e $fd ] && printf '%s ' $fd; done; echo
        umask
        cat /proc/self/oom_score_adj
        set -- $(cat /proc/$$/stat); [ $6 = $$ ] && echo own session
        exec grep -E 'Sig(Blk|Ign)|NoNewPrivs' /proc/self/status";
    let said = worker.script(script);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("/dev/null"));
    assert_eq!(lines.next(), Some("0 1 2 "), "{said}");
    let rest: Vec<String> = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let none = "0000000000000000";
    let expected =
        ["0022", "0", "own session", &format!("SigBlk: {none}"), &format!("SigIgn: {none}"), "NoNewPrivs: 1"];
    assert_eq!(rest, expected, "{said}");
}

#[test]
fn environment_and_directory_are_as_docker_makes_them() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let run = Run {
        env: vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2 =".to_owned())],
        workdir: Some("/made/for/it".to_owned()),
        user: Some("me".to_owned()),
        ..command("1", &["sh", "-c", "env | sort; pwd; stat -c '%a %u:%g %n' /made /made/for/it ."])
    };
    let result = worker.run(&run);
    let expected = "A=2 =\nHOME=/home/me\nHOSTNAME=sandbox\n\
                    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/made/for/it\n\
                    /made/for/it\n755 0:0 /made\n755 0:0 /made/for/it\n755 0:0 .\n";
    assert_eq!(result.text(), expected);
}

#[test]
fn a_command_runs_as_its_user_and_without_power() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "echo $(id -u):$(id -g) $(id -G) $HOME; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status";
    for (user, expected) in [
        (Some("me"), "1000:1001 1001 10 /home/me"),
        (Some("1000"), "1000:1001 1001 10 /home/me"),
        (Some("me:wheel"), "1000:10 10 /home/me"),
        (Some("4711:4712"), "4711:4712 4712 /"),
    ] {
        let run = Run { user: user.map(str::to_owned), ..sh("user", script) };
        let said = worker.run(&run).text();
        assert_eq!(said.lines().next(), Some(expected));
        let caps: Vec<&str> = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(caps, ["0000000000000000"; 4], "{said}");
        assert_eq!(worker.clean(), None);
    }
    // Root has what the container has: chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service,
    // sys_chroot, audit_write, setfcap.
    let said = worker.script("echo $(id -u) $HOME; grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status");
    let words: Vec<&str> = said.split_whitespace().collect();
    let set = "00000000a00404fb";
    assert_eq!(words, ["0", "/root", "CapPrm:", set, "CapEff:", set, "CapBnd:", set]);
}

#[test]
fn what_is_left_behind_is_killed_and_the_exit_is_the_first_process_own() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    // A daemon of two forks that holds both streams open and does not listen to TERM, and an orphan of its own group.
    let script = "
        (setsid sh -c \"trap '' TERM HUP; sleep 1000 & wait; sleep 1000\" & )
        (sleep 1000 &)
        echo ready; exit 4";
    let result = worker.run(&sh("1", script));
    assert_eq!((result.text().as_str(), result.exit.status), ("ready\n", Status::Code(4)));
    assert_eq!(result.exit.by, EndedBy::Itself);
    assert_eq!(worker.clean(), None);
    let left = worker.script("cd /proc; for p in [0-9]*; do [ $p = $$ ] || echo $p; done");
    assert_eq!(left, "1\n", "process 1 is alone, and there is no zombie");
}

#[test]
fn zombies_are_reaped_while_a_command_runs() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    // Orphans that end at once: their parent is gone, so they are the supervisor's. With a limit of processes they
    // would fill it. The last look waits until they are all gone.
    let script = "
        for i in $(seq 50); do (true & true); done
        while grep -lsE '^State:.Z' /proc/[0-9]*/status; do :; done >/dev/null
        echo none";
    assert_eq!(worker.script(script), "none\n");
}

#[test]
fn a_command_that_closes_its_streams_ends_by_its_exit() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/closed");
    sandbox.fifo("/tmp/go");
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "exec >&- 2>&-; echo >/tmp/closed; read x </tmp/go; exit 5"));
    assert_eq!(sandbox.hear("/tmp/closed"), "\n");
    // A new connection is told that it runs, with nothing more to come of its streams.
    drop(worker);
    let (mut worker, hello) = sandbox.accept();
    assert!(matches!(hello.state, State::Running(_)), "{hello:?}");
    sandbox.tell("/tmp/go");
    assert_eq!(worker.finish().exit.status, Status::Code(5));
}

#[test]
fn an_exit_is_told_again_until_the_container_is_cleaned() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let first = worker.run(&sh("1", "echo hello; exit 9")).exit;
    for _ in 0..3 {
        drop(worker);
        let (again, hello) = sandbox.accept();
        worker = again;
        let State::Ended(ended) = &hello.state else { panic!("{hello:?}") };
        assert_eq!((ended.exit, ended.progress.id.as_str(), hello.clean), (first, "1", false));
        // What was acknowledged does not come again.
        assert_eq!((progress(&hello.state).from, progress(&hello.state).have), (first.offsets, first.offsets));
        match worker.next() {
            longshore_supervisor::wire::FromSupervisor::Exited(exited) => assert_eq!(exited.exit, first),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(worker.clean(), None);
    drop(worker);
    let (mut worker, hello) = sandbox.accept();
    assert_eq!((hello.state, hello.clean), (State::Idle, true));
    worker.send(&ToSupervisor::End);
    assert!(worker.try_next().is_none());
}

#[test]
fn the_supervisor_is_out_of_a_commands_reach() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "
        for signal in HUP INT QUIT ILL ABRT FPE SEGV PIPE ALRM TERM USR1 CHLD STOP KILL 34; do kill -$signal 1; done
        cat /proc/1/environ /proc/1/maps >/dev/null 2>&1 && echo read
        for fd in /proc/1/fd/*; do readlink $fd; cat $fd; done 2>/dev/null
        head -c1 /proc/1/mem >/dev/null 2>&1 && echo memory
        rm -f /dev/longshore/sock 2>/dev/null && echo removed
        echo x 2>/dev/null >>/dev/longshore/supervisor && echo written
        echo still";
    assert_eq!(worker.script(script), "still\n");
    assert_eq!(worker.script("echo and yet"), "and yet\n");
}
