//! `exec`: a program's streams, status and terminal, as if it ran here.

use nspawn_tests::cli::Invocation;
use nspawn_tests::scene::Scene;

fn quoted(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
#[ignore = "needs root"]
fn root_exec_is_as_if_it_ran_here() {
    let scene = Scene::new();
    let unit = scene.script("idle.service", "exec sleep 600");
    let name = scene.name("idle");
    scene
        .run_unit(&unit, &["--network", "none", "--detach"])
        .expect_code(0);
    let sh = |script: &str| scene.command(["exec", &name, "--", "/bin/sh", "-c", script]);

    let streams = sh("cat; echo out; echo err >&2").stdin("in\n").run();
    streams.expect_code(0);
    assert_eq!(
        (streams.stdout.as_str(), streams.stderr.as_str()),
        ("in\nout\n", "err\n")
    );

    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let sum = sh("sha256sum").stdin(bytes.clone()).run();
    let outside = Invocation::new("sha256sum").stdin(bytes).run();
    assert_eq!(sum.stdout, outside.stdout);

    for (script, code) in [
        ("exit 0", 0),
        ("exit 42", 42),
        ("exit 125", 125),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
    ] {
        let finished = sh(script).run();
        finished.expect_code(code);
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            ("", ""),
            "{script}"
        );
    }
    for program in ["/does/not/exist", "no-such-program", "/etc"] {
        scene
            .run(["exec", &name, "--", program])
            .expect_code(125)
            .expect_stderr("cannot run")
            .expect_stderr(program);
    }
    // found on the machine's own PATH, options of the program are the program's
    let printed = scene.run(["exec", &name, "--", "printf", "%s|", "-a", "--help", "x y"]);
    assert_eq!(printed.stdout, "-a|--help|x y|", "{}", printed.transcript());

    let env = scene
        .command(["exec", &name, "-e", "A=1 2", "--env", "B=$x%n", "--", "env"])
        .env("LEAKED", "yes")
        .run();
    env.expect_code(0)
        .expect_stdout("A=1 2\n")
        .expect_stdout("B=$x%n\n")
        .expect_stdout("HOME=/root\n");
    assert!(!env.stdout.contains("LEAKED"), "{}", env.stdout);
    scene
        .run(["exec", &name, "-e", "novalue", "--", "env"])
        .expect_code(2)
        .expect_stderr("NAME=VALUE");

    // in the machine's namespaces, as its root, seen by its systemd
    let inside =
        sh("cat /proc/1/comm; id -u; hostname; systemctl is-active idle.service; pwd").run();
    assert_eq!(
        inside.stdout,
        format!("systemd\n0\n{name}\nactive\n/\n"),
        "{}",
        inside.transcript()
    );

    // a program that is left running does not outlive the machine, nor hold it
    sh("sleep 600 >/dev/null 2>&1 & echo left")
        .run()
        .expect_code(0)
        .expect_stdout("left");
    let stopped = scene.run(["stop", &name]);
    stopped.expect_code(0);
    assert!(stopped.elapsed.as_secs() < 8, "{}", stopped.transcript());
    scene
        .run(["exec", &name, "--", "true"])
        .expect_code(125)
        .expect_stderr("not running");
    scene.run(["remove", &name]).expect_code(0);
    scene
        .run(["exec", &name, "--", "true"])
        .expect_code(125)
        .expect_stderr("no machine is named");
    scene.end();
}

/// script(1) gives the command a terminal, as a person has one.
#[test]
#[ignore = "needs root"]
fn root_exec_on_a_terminal_has_its_size_and_status() {
    let scene = Scene::new();
    let unit = scene.script("idle.service", "exec sleep 600");
    let name = scene.name("idle");
    scene
        .run_unit(&unit, &["--network", "none", "--detach"])
        .expect_code(0);
    let program = nspawn_tests::cli::program();
    let root = scene.cli().root().to_str().unwrap();
    let run_root = scene.cli().run_root().to_str().unwrap();
    let on_terminal = |arguments: &[&str], typed: &str| {
        let mut words = vec![
            program.to_str().unwrap(),
            "--root",
            root,
            "--run-root",
            run_root,
        ];
        words.extend(arguments);
        let line = format!("stty rows 33 cols 77; {}", quoted(&words));
        Invocation::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("TERM", "dumb")
            .stdin(typed.to_owned())
            .run()
    };
    let look = "test -t 0 && test -t 1 && test -t 2 && stty size && tty && exit 5";
    let finished = on_terminal(&["exec", "-t", &name, "--", "sh", "-c", look], "");
    finished
        .expect_code(5)
        .expect_stdout("33 77\r\n")
        .expect_stdout("/dev/pts/");

    let typed = on_terminal(
        &[
            "exec",
            "-t",
            &name,
            "--",
            "sh",
            "-c",
            "read line; echo got $line",
        ],
        "hello\n",
    );
    typed.expect_code(0).expect_stdout("got hello");

    let shell = on_terminal(&["shell", &name], "hostname; exit 9\n");
    shell.expect_code(9).expect_stdout(&name);

    // without a terminal of ours, -t still gives the program one
    let plain = scene
        .command([
            "exec",
            "-t",
            &name,
            "--",
            "sh",
            "-c",
            "test -t 1 && echo yes",
        ])
        .run();
    plain.expect_code(0).expect_stdout("yes");
    // and without -t a terminal of ours is passed on as it is
    let passed = on_terminal(
        &["exec", &name, "--", "sh", "-c", "test -t 0 && stty size"],
        "",
    );
    passed.expect_code(0).expect_stdout("33 77");
    scene.run(["kill", &name]).expect_code(0);
    scene.run(["remove", &name]).expect_code(0);
    scene.end();
}
