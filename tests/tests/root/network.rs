//! The machine's link: addresses before the units start, and both directions reachable.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nspawn_tests::fixture::Debian;
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::scene::Scene;
use nspawn_tests::wait;

/// The host's own /usr has no networkd running, the Debian image has networkd and resolved enabled.
fn images() -> [String; 2] {
    ["host".to_owned(), Debian::Raw.path().display().to_string()]
}

#[test]
#[ignore = "needs root"]
fn root_units_start_with_addresses() {
    let scene = Scene::new();
    let unit = scene.write(
        "first.service",
        "[Unit]\nDefaultDependencies=no\nRequires=network-online.target\n\
         [Service]\nType=oneshot\nExecStart=/bin/sh -c 'ip -o address show dev host0; ip route; ip -6 route'\n",
    );
    for image in images() {
        let finished = scene.run_unit(&unit, &["--image", &image]);
        finished.expect_code(0).expect_stderr(" has 10.213.");
        let told = finished
            .stderr
            .lines()
            .find(|line| line.contains(" has 10.213."))
            .unwrap();
        let (v4, v6) = told
            .split_once(" has ")
            .unwrap()
            .1
            .split_once(" and ")
            .unwrap();
        finished
            .expect_stdout(&format!("inet {v4}/30"))
            .expect_stdout(&format!("inet6 {v6}/64"))
            .expect_stdout("default via 10.213.");
        let mut global = finished
            .stdout
            .lines()
            .filter(|line| line.contains("scope global"));
        assert!(
            global.all(|line| !line.contains("tentative")),
            "{}",
            finished.transcript()
        );
        assert!(
            finished.elapsed < Duration::from_secs(30),
            "{}",
            finished.transcript()
        );
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_waiting_for_the_network_does_not_hold_the_boot() {
    let scene = Scene::new();
    let unit = scene.write(
        "online.service",
        "[Unit]\nRequires=network-online.target\nAfter=network-online.target\n\
         [Service]\nType=oneshot\nExecStart=/bin/sh -c 'systemctl is-active systemd-networkd systemd-resolved; \
         networkctl --no-pager list'\n",
    );
    for network in ["veth", "none"] {
        let finished = scene.run_unit(
            &unit,
            &[
                "--image",
                Debian::Raw.path().to_str().unwrap(),
                "--network",
                network,
            ],
        );
        finished.expect_code(0).expect_stdout("active\nactive\n");
        if network == "veth" {
            finished.expect_stdout("configured");
        }
        assert!(
            finished.elapsed < Duration::from_secs(30),
            "{}",
            finished.transcript()
        );
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_host_and_machine_reach_each_other() {
    let scene = Scene::new();
    // a server of the base system in either image: perl is in both
    let server = "exec perl -MIO::Socket::IP -e 'my $s = IO::Socket::IP->new(LocalAddr => q(::), \
                  LocalPort => 8080, Listen => 5, ReuseAddr => 1, V6Only => 0) or die $@; print qq(up\\n); \
                  $| = 1; while (my $c = $s->accept) { print $c qq(from the machine\\n); close $c }'";
    for image in images() {
        let unit = scene.script("server.service", server);
        let name = scene.name("server");
        scene
            .run_unit(&unit, &["--image", &image, "--detach"])
            .expect_code(0);
        let addresses = scene.status(&name)["machine"]["addresses"].clone();
        let get = |key: &str| addresses[key].as_str().unwrap().parse::<IpAddr>().unwrap();
        for key in ["guest_v4", "guest_v6"] {
            let address = SocketAddr::new(get(key), 8080);
            let text = wait::until(Duration::from_secs(10), || {
                let mut stream =
                    TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
                let mut text = String::new();
                stream.read_to_string(&mut text).ok()?;
                Some(text)
            });
            assert_eq!(
                text.as_deref(),
                Some("from the machine\n"),
                "{image} {address}"
            );
        }
        for key in ["host_v4", "host_v6"] {
            let outside = HttpServer::on(get(key));
            outside.put("/hello", Resource::bytes("from the host\n"));
            let address = outside.address();
            let script = format!(
                "perl -MIO::Socket::IP -e 'my $s = IO::Socket::IP->new(PeerAddr => q({}), PeerPort => {}, \
                 Timeout => 5) or die $@; print $s qq(GET /hello HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n); print <$s>'",
                address.ip(),
                address.port()
            );
            let got = scene.run(["exec", &name, "--", "sh", "-c", &script]);
            got.expect_code(0).expect_stdout("from the host\n");
        }
        scene.run(["kill", &name]).expect_code(0);
        scene.run(["remove", &name]).expect_code(0);
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_two_machines_have_two_networks() {
    let scene = Scene::new();
    let mut seen = Vec::new();
    for stem in ["one", "two"] {
        let unit = scene.script(&format!("{stem}.service"), "exec sleep 600");
        scene.run_unit(&unit, &["--detach"]).expect_code(0);
        let record = scene.status(&scene.name(stem))["machine"].clone();
        for key in ["host_v4", "guest_v4", "host_v6", "guest_v6", "link"] {
            seen.push(record["addresses"][key].to_string());
        }
        seen.push(record["user_range"].to_string());
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "{seen:?}");
    for stem in ["one", "two"] {
        scene.run(["kill", &scene.name(stem)]).expect_code(0);
        scene.run(["remove", &scene.name(stem)]).expect_code(0);
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_the_host_network_and_none_are_what_they_say() {
    let scene = Scene::new();
    let unit = scene.script(
        "links.service",
        "ls /sys/class/net; cat /proc/net/dev | wc -l >&2",
    );
    let none = scene.run_unit(&unit, &["--network", "none"]);
    none.expect_code(0);
    assert!(none.stdout.starts_with("lo\n3\n"), "{}", none.transcript());
    assert!(!none.stderr.contains("10.213"), "{}", none.transcript());

    let server = HttpServer::new();
    server.put("/x", Resource::bytes("loopback\n"));
    let port = server.address().port();
    let asks = scene.script(
        "asks.service",
        &format!(
            "perl -MIO::Socket::IP -e 'my $s = IO::Socket::IP->new(PeerAddr => q(127.0.0.1), PeerPort => {port}) \
             or die $@; print $s qq(GET /x HTTP/1.1\\r\\n\\r\\n); print <$s>'"
        ),
    );
    for (network, reached) in [("host", true), ("none", false)] {
        let finished = scene.run_unit(&asks, &["--network", network]);
        assert_eq!(
            finished.stdout.contains("loopback\n"),
            reached,
            "{}",
            finished.transcript()
        );
    }
    scene.end();
}
