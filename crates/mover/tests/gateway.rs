//! The one public port: whoever names a receiver is led there, at the pace of his line; all others hear nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{LIMIT, Running, Site, image, same, until};

/// A gateway, with the site of the test.
struct Gate {
    site: Site,
    running: Running,
    address: SocketAddr,
}

impl Gate {
    fn open(site: Site, table: &str, more: &[&str]) -> Self {
        std::fs::write(site.path("table.yaml"), table).unwrap();
        let args = ["gateway", "run", "--listen", "127.0.0.1:0", "--table", "table.yaml", "--state", "gate"];
        let running = Running::start(&site, &[&args, more].concat());
        let address = running.address().parse().unwrap();
        Self { site, running, address }
    }

    /// What the gateway is asked, or told.
    fn order(&self, order: &[&str]) -> Value {
        let told = self.site.run(&[&["gateway"], order, &["--state", "gate"]].concat());
        assert!(told.status.success(), "{order:?}: {told:?}");
        serde_json::from_slice(&told.stdout).unwrap()
    }

    fn route(&self, name: &str) -> Value {
        self.order(&["status"])["sites"]["prova"]["routes"][name].clone()
    }

    /// Another table, moved into place as a whole.
    fn follow(&self, table: &str) {
        std::fs::write(self.site.path("table.new"), table).unwrap();
        std::fs::rename(self.site.path("table.new"), self.site.path("table.yaml")).unwrap();
    }

    fn call(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// A call that has named a receiver.
    fn called(&self, name: &str) -> TcpStream {
        let mut stream = self.call();
        stream.write_all(&hello(name)).unwrap();
        stream
    }
}

/// What a TLS client says first.
fn hello(name: &str) -> Vec<u8> {
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A receiver that only counts. It answers with what it has counted when the caller has said all.
struct Counter {
    address: SocketAddr,
    seen: Arc<AtomicU64>,
}

impl Counter {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&seen);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let counted = Arc::clone(&counted);
                thread::spawn(move || {
                    let (mut hash, mut buffer) = (blake3::Hasher::new(), vec![0; 64 << 10]);
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        hash.update(&buffer[..count]);
                        counted.fetch_add(count as u64, Ordering::Relaxed);
                    }
                    let _ = stream.write_all(hash.finalize().as_bytes());
                });
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

fn table(line: &str, routes: &[(&str, SocketAddr, u32)]) -> String {
    let mut table = format!("sites: {{prova: {{line: {line}}}}}\nroutes:\n");
    for (name, address, weight) in routes {
        table.push_str(&format!("  {name}: {{site: prova, address: '{address}', weight: {weight}}}\n"));
    }
    table
}

const NAME: &str = "3f2a.mover.invalid";

/// Whether the other side closes without a word.
fn hears_nothing(mut stream: TcpStream) -> bool {
    let mut word = [0];
    match stream.read(&mut word) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn every_byte_arrives_as_it_was_sent_though_the_greeting_comes_in_crumbs() {
    let receiver = Counter::start();
    let gate = Gate::open(Site::new(), &table("{}", &[(NAME, receiver.address, 1)]), &[]);
    // One record for each few bytes, and one segment for each byte.
    let whole = hello(NAME);
    let crumbs: Vec<u8> = whole[5..]
        .chunks(7)
        .flat_map(|piece| [&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()], piece].concat())
        .collect();
    let content = support::noise(7, 3 << 20);
    let mut stream = gate.call();
    stream.set_nodelay(true).unwrap();
    for byte in &crumbs {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.write_all(&content).unwrap();
    // This end has said all; the other still answers.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let sent = [crumbs, content].concat();
    assert_eq!(answer, blake3::hash(&sent).as_bytes());
    let route =
        until("the connection does not end", || Some(gate.route(NAME)).filter(|route| route["open"] == 0));
    assert_eq!(route["bytesUp"], sent.len(), "{route}");
    assert_eq!(route["bytesDown"], 32, "{route}");
    assert_eq!(route["connections"], 1, "{route}");
}

#[test]
fn whoever_names_nobody_hears_nothing_and_all_names_are_alike() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gate = Gate::open(Site::new(), &table("{}", &[("down.invalid", closed, 1)]), &[]);
    // A name that is not there, one whose receiver is not there, none at all, and what is not TLS.
    for said in [
        hello("unknown.mover.invalid"),
        hello("down.invalid"),
        hello("127.0.0.1"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        [vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff], vec![0; 20_000]].concat(),
    ] {
        let mut stream = gate.call();
        // It may be turned away before it has said all.
        let _ = stream.write_all(&said);
        assert!(hears_nothing(stream));
    }
    let turned = gate.order(&["status"])["turnedAway"].clone();
    for why in ["a name that is not in the table", "the greeting names nobody", "not TLS"] {
        assert_eq!(turned[why], 1, "{turned}");
    }
    assert_eq!(gate.route("down.invalid")["unreachable"], 1);
}

#[test]
fn callers_who_dawdle_are_turned_away_and_keep_no_other_out() {
    let receiver = Counter::start();
    let limits = ["--greeting", "10s", "--unknown-each", "4", "--unknown", "6"];
    let gate = Gate::open(Site::new(), &table("{}", &[(NAME, receiver.address, 1)]), &limits);
    let whole = hello(NAME);
    // They fill what one address may have, and say a byte now and then.
    let dawdlers: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = gate.call();
            stream.write_all(&whole[..20]).unwrap();
            stream
        })
        .collect();
    until("they are not counted", || (gate.order(&["status"])["connections"]["unknown"] == 4).then_some(()));
    assert!(hears_nothing(gate.call()), "a fifth from the same address was let in");
    // Another address has room.
    let elsewhere = from(Ipv4Addr::new(127, 0, 0, 2), gate.address);
    (&elsewhere).write_all(&whole).unwrap();
    elsewhere.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    (&elsewhere).read_to_end(&mut answer).unwrap();
    assert_eq!(answer, blake3::hash(&whole).as_bytes());
    for mut dawdler in dawdlers {
        let mut given_up = false;
        for byte in whole[20..].iter().cycle().take(300) {
            given_up = dawdler.write_all(&[*byte]).is_err() || {
                dawdler.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                let mut word = [0];
                match dawdler.read(&mut word) {
                    Ok(count) => count == 0,
                    Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
                }
            };
            if given_up {
                break;
            }
        }
        assert!(given_up, "a dawdler may stay");
    }
    until("their places are not given back", || {
        (gate.order(&["status"])["connections"]["unknown"] == 0).then_some(())
    });
    assert!(!hears_nothing(answered(gate.called(NAME))), "the address is locked out for ever");
}

/// A stream whose caller has said all, so that there will be an answer.
fn answered(stream: TcpStream) -> TcpStream {
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream
}

fn from(address: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(IpAddr::V4(address), 0)).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[test]
fn a_crowd_of_connections_takes_no_room_that_is_not_given_back() {
    let receiver = Counter::start();
    let limits = ["--unknown-each", "200", "--greeting", "90s", "--connections-each", "3"];
    let gate = Gate::open(Site::new(), &table("{}", &[(NAME, receiver.address, 1)]), &limits);
    let crowd: Vec<TcpStream> = (0..300).filter_map(|_| TcpStream::connect(gate.address).ok()).collect();
    let status = until("none was turned away", || {
        let status = gate.order(&["status"]);
        status["turnedAway"]["too many connections"].is_u64().then_some(status)
    });
    assert!(status["connections"]["unknown"].as_u64().unwrap() <= 200, "{status}");
    drop(crowd);
    until("their places are not given back", || {
        (gate.order(&["status"])["connections"]["unknown"] == 0).then_some(())
    });
    // Three are led, the fourth is not.
    let led: Vec<TcpStream> = (0..3).map(|_| gate.called(NAME)).collect();
    until("they are not led", || (gate.route(NAME)["open"] == 3).then_some(()));
    assert!(hears_nothing(gate.called(NAME)));
    drop(led);
}

#[test]
fn a_receiver_that_moved_is_found_and_one_that_is_taken_out_is_cut_off() {
    let (old, new) = (Counter::start(), Counter::start());
    let mut gate = Gate::open(Site::new(), &table("{}", &[(NAME, old.address, 1)]), &[]);
    let mut stays = gate.called(NAME);
    until("the old one hears nothing", || (old.seen() > 0).then_some(()));

    // A table that cannot be used changes nothing, and says so.
    gate.follow("routes: {");
    let problem = gate.running.event("warning")["text"].as_str().unwrap().to_owned();
    assert!(problem.contains("the one before holds"), "{problem}");
    assert!(gate.order(&["status"])["tableProblem"].is_string());

    gate.follow(&table("{}", &[(NAME, new.address, 1)]));
    gate.running.event("note");
    assert!(gate.order(&["status"])["tableProblem"].is_null());
    let moved = gate.called(NAME);
    until("the new one hears nothing", || (new.seen() > 0).then_some(()));
    let before = old.seen();
    stays.write_all(b"still here").unwrap();
    until("the connection to the old one was cut", || (old.seen() == before + 10).then_some(()));

    gate.follow("sites: {prova: {}}");
    gate.running.event("note");
    assert!(hears_nothing(stays));
    assert!(hears_nothing(moved));
    assert!(hears_nothing(gate.called(NAME)));
}

#[test]
fn two_servers_share_their_line_by_weight_and_never_have_more_than_it() {
    let (one, three) = (Counter::start(), Counter::start());
    let routes = [("one.invalid", one.address, 1), ("three.invalid", three.address, 3)];
    let gate = Gate::open(Site::new(), &table("{cap: 8 Mbit/s}", &routes), &[]);
    for name in ["one.invalid", "three.invalid"] {
        let mut stream = gate.called(name);
        thread::spawn(move || while stream.write_all(&[7; 16 << 10]).is_ok() {});
    }
    // 8 Mbit/s are 956 kB/s of content; it is divided as soon as both have shown that they want more.
    let share = |name: &str| gate.route(name)["share"].as_u64().unwrap_or(0);
    until("they do not share by weight", || {
        let (one, three) = (share("one.invalid"), share("three.invalid"));
        (one + three <= 956_500 && (230_000..=245_000).contains(&one) && three >= 700_000).then_some(())
    });
    let began = Instant::now();
    let (before_one, before_three) = (one.seen(), three.seen());
    until("nothing moves", || (one.seen() - before_one > 500_000).then_some(()));
    let (moved_one, moved_three) = (one.seen() - before_one, three.seen() - before_three);
    let allowed = began.elapsed().as_secs_f64() * 956_500.0;
    // What was under way in buffers when it began may come on top.
    let total = (moved_one + moved_three) as f64;
    assert!(total < allowed * 1.1 + 65_536.0, "{total} of {allowed}");
    assert!((moved_one * 2..moved_one * 4).contains(&moved_three), "{moved_one} and {moved_three}");

    // One stops: the other has all of it.
    let status = gate.order(&["cap", "prova", "4 Mbit/s"]);
    assert_eq!(status["cap"], "4 Mbit/s");
    until("the cap is not felt", || (share("one.invalid") + share("three.invalid") <= 478_500).then_some(()));
}

/// A site whose agent goes through a gateway, with that gateway.
fn gated(line: &str) -> (Gate, Running) {
    let site = Site::new();
    site.ok(&["ca", "gateway", "--dir", "ca", "--out", "divides"]);
    let receiver = site.receiver(&["--until-proven"]);
    let place = Running::start(&site, &["ca", "serve", "--dir", "ca", "--listen", "127.0.0.1:0"]);
    let about =
        |path: &str| -> Value { serde_json::from_slice(&std::fs::read(site.path(path)).unwrap()).unwrap() };
    let table = format!(
        "sites: {{prova: {{identity: divides, line: {line}}}}}\nroutes:\n  {}: {{site: prova, address: '{}'}}\n  {}: \
         {{site: prova, address: '{}'}}\n",
        about("receiver/about.json")["name"].as_str().unwrap(),
        receiver.address(),
        about("ca/about.json")["enrol"].as_str().unwrap(),
        place.address(),
    );
    let gate = Gate::open(site, &table, &[]);
    let address = gate.address.to_string();
    gate.site.ok(&[
        "ca",
        "token",
        "--dir",
        "ca",
        "--source",
        "srv1",
        "--target",
        "disk",
        "--enrol",
        &address,
        "--receive",
        &address,
        "--through-gateway",
        "--out",
        "token.json",
    ]);
    // The one public port leads to the place of enrolment, too.
    gate.site.ok(&["enrol", "--token", "token.json", "--state", "agent"]);
    (gate, receiver)
}

fn receiver_name(gate: &Gate) -> String {
    let about: Value =
        serde_json::from_slice(&std::fs::read(gate.site.path("receiver/about.json")).unwrap()).unwrap();
    about["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_disk_goes_through_the_gateway_is_paused_by_it_and_arrives() {
    let (mut gate, mut receiver) = gated("{cap: 16 Mbit/s}");
    let disk = std::fs::File::create(gate.site.path("disk")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &support::noise(3, 12 << 20), 0).unwrap();
    let args = ["agent", "--state", "agent", "--source", "disk", "--prove"];
    let mut agent = Running::start(&gate.site, &args);
    let name = receiver_name(&gate);
    until("nothing moves", || gate.route(&name)["bytesUp"].as_u64().filter(|bytes| *bytes > 2 << 20));
    let route = gate.route(&name);
    assert!(route["left"].is_u64() && route["words"].as_str().unwrap().starts_with("ready "), "{route}");

    // Everything was paused, also for a gateway that is started again; the agent is told and says so.
    let status = gate.order(&["pause", "prova"]);
    assert_eq!(status["paused"], true, "{status}");
    until("the agent is not told", || {
        let note = agent.event("note");
        note["text"].as_str().unwrap().contains("paused").then_some(())
    });
    until("it is not stopped", || gate.route(&name)["bytesEachSecond"].as_u64().filter(|rate| *rate <= 4096));
    let listen = gate.address.to_string();
    gate.running.kill();
    gate.running = Running::start(
        &gate.site,
        &["gateway", "run", "--listen", &listen, "--table", "table.yaml", "--state", "gate"],
    );
    assert_eq!(gate.running.address(), listen);
    assert_eq!(gate.order(&["status"])["sites"]["prova"]["paused"], true);
    until("the agent does not come back", || {
        gate.route(&name)["connections"].as_u64().filter(|connections| *connections > 0)
    });
    assert!(receiver.is_running());

    let status = gate.order(&["resume", "prova"]);
    assert_eq!(status["paused"], false, "{status}");
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert!(same(&gate.site.path("disk"), &gate.site.path("copy")));
}

#[test]
fn an_agent_behind_a_proxy_gets_out_with_its_password_from_a_file() {
    let (gate, mut receiver) = gated("{}");
    image(&gate.site.path("disk"), 4);
    let proxy = proxy();
    let proxy = format!("http://{proxy}");
    let agent = |more: &[&str]| {
        let args = ["agent", "--state", "agent", "--source", "disk", "--proxy", &proxy, "--prove"];
        Running::start(&gate.site, &[&args, more].concat())
    };
    let mut stranger = agent(&["--give-up-after", "1s"]);
    assert_eq!(stranger.end().code(), Some(3), "{:#?}", stranger.seen);
    let why = stranger.last("error")["text"].as_str().unwrap();
    assert!(why.contains("--proxy-login"), "{why}");
    let login = gate.site.path("login");
    std::fs::write(&login, "ufficio:segreto\n").unwrap();
    std::fs::set_permissions(&login, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut known = agent(&["--proxy-login", "login"]);
    assert!(known.end().success(), "{:#?}", known.seen);
    assert!(receiver.end().success());
    assert!(same(&gate.site.path("disk"), &gate.site.path("copy")));
    assert!(!format!("{:?}{:?}", stranger.seen, known.seen).contains("segreto"));
}

/// A proxy that wants a password.
fn proxy() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    request.push(byte[0]);
                }
                let request = String::from_utf8(request).unwrap();
                // ufficio:segreto
                if !request.contains("Proxy-Authorization: Basic dWZmaWNpbzpzZWdyZXRv\r\n") {
                    let refusal = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
                    let _ = stream.write_all(refusal.as_bytes());
                    return;
                }
                let to = request.split(' ').nth(1).unwrap().to_owned();
                let Ok(other) = TcpStream::connect(to) else { return };
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut a, mut b) = (stream.try_clone().unwrap(), other.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut a, &mut b);
                    let _ = b.shutdown(std::net::Shutdown::Write);
                });
                let (mut a, mut b) = (stream, other);
                let _ = std::io::copy(&mut b, &mut a);
                let _ = a.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

#[test]
fn nobody_gets_leases_without_a_certificate_of_the_site() {
    let (gate, _receiver) = gated("{cap: 8 Mbit/s}");
    let about: Value =
        serde_json::from_slice(&std::fs::read(gate.site.path("divides/about.json")).unwrap()).unwrap();
    // A client of another municipality: it trusts nobody here and shows nothing.
    let mut stream = gate.called(about["name"].as_str().unwrap());
    let mut answer = Vec::new();
    stream.write_all(&[23, 3, 3, 0, 5, 1, 2, 3, 4, 5]).unwrap();
    let _ = stream.read_to_end(&mut answer);
    until("it is not counted", || {
        (gate.order(&["status"])["turnedAway"]["no certificate of the site"] == 1).then_some(())
    });
    let control = gate.site.path("gate/control.sock");
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    // A second gateway in the same state directory would answer for the first.
    let second = gate.site.run(&[
        "gateway",
        "run",
        "--listen",
        "127.0.0.1:0",
        "--table",
        "table.yaml",
        "--state",
        "gate",
    ]);
    assert!(!second.status.success(), "{second:?}");
    let wrong = gate.site.run(&["gateway", "pause", "nowhere", "--state", "gate"]);
    assert!(String::from_utf8_lossy(&wrong.stdout).contains("there are: prova"), "{wrong:?}");
}
