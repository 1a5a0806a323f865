//! A move beside other work on a thin line, through a router with a deep queue. Needs root and network namespaces; says
//! so when it cannot run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{LIMIT, Running, Site, noise};

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

fn ip(args: &str) {
    let args: Vec<&str> = args.split(' ').collect();
    assert!(run("ip", &args), "ip {args:?}");
}

/// A local server, a router and a data centre; the router sends 5 Mbit/s and holds 400 ms of what is too much.
struct Net {
    id: u32,
}

impl Net {
    fn new() -> Option<Self> {
        let net = Self { id: std::process::id() };
        let [server, router, centre] = ["server", "router", "centre"].map(|place| net.place(place));
        let possible = rustix::process::geteuid().is_root()
            && [&server, &router, &centre].iter().all(|place| run("ip", &["netns", "add", place]));
        if !possible {
            println!("SKIPPED: this needs root and network namespaces (ip, tc)");
            return None;
        }
        let (a, b) = (format!("cma{}", net.id), format!("cmb{}", net.id));
        ip(&format!("link add {a} netns {server} type veth peer name {a} netns {router}"));
        ip(&format!("link add {b} netns {centre} type veth peer name {b} netns {router}"));
        for (place, link, address) in [
            (&server, &a, "10.213.1.1/24"),
            (&router, &a, "10.213.1.2/24"),
            (&router, &b, "10.213.2.2/24"),
            (&centre, &b, "10.213.2.1/24"),
        ] {
            ip(&format!("-n {place} addr add {address} dev {link}"));
            ip(&format!("-n {place} link set {link} up"));
            ip(&format!("-n {place} link set lo up"));
        }
        ip(&format!("-n {server} route add default via 10.213.1.2"));
        ip(&format!("-n {centre} route add default via 10.213.2.2"));
        net.within("router", || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        // Every kernel has Reno, which fills a queue until something is lost; with others, such as BBR, the queue would
        // be full for a moment at most, and what a cap is good for could not be seen.
        net.within("server", || std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").unwrap());
        let shape = format!("tc qdisc add dev {b} root tbf rate 5mbit burst 16kb latency 400ms");
        let shape: Vec<&str> = shape.split(' ').collect();
        assert!(net.exec("router", &shape).output().unwrap().status.success(), "no tbf in this kernel");
        Some(net)
    }

    fn place(&self, name: &str) -> String {
        format!("cm-{name}-{}", self.id)
    }

    fn exec(&self, place: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.place(place)]).args(args);
        command
    }

    /// The program, in a place.
    fn program(&self, place: &str, site: &Site, args: &[&str]) -> Running {
        let command = site.command(args);
        let mut there = self.exec(place, &[]);
        there.arg(command.get_program()).args(command.get_args().map(OsString::from));
        there.current_dir(site.path("")).stdin(std::process::Stdio::null());
        Running::spawn(there)
    }

    /// Does this with the sockets of a place.
    fn within<T: Send + 'static>(&self, place: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let name_space = std::fs::File::open(format!("/run/netns/{}", self.place(place))).unwrap();
        let moved = move || {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&name_space),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        };
        thread::spawn(moved).join().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in ["server", "router", "centre"] {
            run("ip", &["netns", "del", &self.place(place)]);
        }
    }
}

/// The middle of so many round trips of one byte.
fn round_trip(stream: &mut TcpStream, count: usize) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let began = Instant::now();
            stream.write_all(&[1]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[count / 2]
}

#[test]
fn beside_a_move_with_a_cap_others_hardly_notice_it() {
    let Some(net) = Net::new() else { return };
    let site = Site::new();
    site.ok(&["ca", "gateway", "--dir", "ca", "--out", "divides"]);
    let receive = [
        "receive",
        "--identity",
        "receiver",
        "--state",
        "received",
        "--listen",
        "10.213.2.1:7443",
        "--target",
        "copy",
    ];
    let receiver = net.program("centre", &site, &receive);
    receiver.address();
    let place = Running::start(&site, &["ca", "serve", "--dir", "ca", "--listen", "127.0.0.1:0"]);
    let public = "10.213.2.1:443";
    site.ok(&[
        "ca",
        "token",
        "--dir",
        "ca",
        "--source",
        "srv1",
        "--target",
        "disk",
        "--enrol",
        &place.address(),
        "--receive",
        public,
        "--through-gateway",
        "--out",
        "token.json",
    ]);
    site.ok(&["enrol", "--token", "token.json", "--state", "agent"]);
    let about: Value =
        serde_json::from_slice(&std::fs::read(site.path("receiver/about.json")).unwrap()).unwrap();
    let name = about["name"].as_str().unwrap().to_owned();
    let table = format!(
        "sites: {{prova: {{identity: divides}}}}\nroutes: {{{name}: {{site: prova, address: '10.213.2.1:7443'}}}}\n"
    );
    std::fs::write(site.path("table.yaml"), table).unwrap();
    let gateway = net.program(
        "centre",
        &site,
        &["gateway", "run", "--listen", public, "--table", "table.yaml", "--state", "gate"],
    );
    gateway.address();
    std::fs::write(site.path("disk"), noise(5, 96 << 20)).unwrap();

    // Somebody else at the site, who uses the same line for something small.
    let listener = net.within("centre", || TcpListener::bind("10.213.2.1:7").unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let mut other = net.within("server", || TcpStream::connect("10.213.2.1:7").unwrap());
    other.set_nodelay(true).unwrap();
    other.set_read_timeout(Some(LIMIT)).unwrap();

    let status = |order: &[&str]| -> Value {
        let told = site.run(&[&["gateway"], order, &["--state", "gate"]].concat());
        serde_json::from_slice(&told.stdout).unwrap()
    };
    let rate =
        || status(&["status"])["sites"]["prova"]["routes"][&name]["bytesEachSecond"].as_u64().unwrap_or(0);
    let mut agent =
        net.program("server", &site, &["agent", "--state", "agent", "--source", "disk", "--level", "0"]);
    let end = Instant::now() + LIMIT;
    // The queue of the router is full, as it is with any tool that takes what it gets.
    let full = loop {
        let middle = round_trip(&mut other, 5);
        if middle > Duration::from_millis(150) {
            break middle;
        }
        assert!(Instant::now() < end && agent.is_running(), "the move does not fill the line: {middle:?}");
    };
    status(&["cap", "prova", "2 Mbit/s"]);
    // As soon as the cap holds and the queue is empty, the other does not wait any longer.
    let free = loop {
        let middle = round_trip(&mut other, 21);
        if middle < full / 4 {
            break middle;
        }
        assert!(Instant::now() < end && agent.is_running(), "{middle:?} after {full:?}");
    };
    let moved = loop {
        let rate = rate();
        if (30_000..=260_000).contains(&rate) {
            break rate;
        }
        assert!(Instant::now() < end && agent.is_running(), "{rate} B/s with a cap of 2 Mbit/s");
    };
    println!("a byte there and back: {full:?} without a cap, {free:?} with one; {moved} B/s are moved");
    agent.kill();
    drop((receiver, gateway));
}
