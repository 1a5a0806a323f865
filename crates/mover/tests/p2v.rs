//! A whole server: a Debian with its own boot loader is copied while people work on it, cut over, and its copy is
//! started on other hardware. Emulated in software; needs root, and the packages of the distribution.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conme_testbed::{Dirs, Progress, Server, ensure_server, ensure_server_tools};
use serde_json::{Value, json};
use support::{Running, Site, events, until_within};

/// Emulated machines on a busy one take their time.
const LIMIT: Duration = Duration::from_secs(240);

/// The server and its tools, or why they are not to be had here.
fn server() -> Option<Server> {
    let skipped = |why: &str| println!("SKIPPED: the move of a whole server: {why}");
    if cfg!(not(target_arch = "x86_64")) {
        skipped("it is one with an x86-64 processor");
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("only root can install a Debian");
        return None;
    }
    let (dirs, progress) = (Dirs::from_env().unwrap(), Progress::stderr());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(ensure_server_tools(&dirs, &progress)) {
        // Where packages can be had, one of Debian that cannot be made is a failure.
        Ok(tools) => match runtime.block_on(ensure_server(&dirs, tools, &progress)) {
            Ok(server) => Some(server),
            Err(error) => panic!("{error:#}"),
        },
        Err(error) => {
            skipped(&format!("{error:#}"));
            None
        }
    }
}

/// A machine that runs, with somebody at its console.
struct Machine {
    child: Child,
    console: BufReader<UnixStream>,
    /// Where its register is found on this side.
    register: u16,
    serial: PathBuf,
}

impl Machine {
    /// Switches a machine on: with this disk as this kind of device, and a stick that is put in.
    fn on(server: &Server, site: &Site, name: &str, device: &str, disk: &Path, stick: Option<&Path>) -> Self {
        let at = |what: &str| site.path(&format!("{name}.{what}"));
        let mut command = server.qemu();
        command.args(["-device", "virtio-net-pci,netdev=wire,romfile="]);
        command.args(["-netdev", "user,id=wire,hostfwd=tcp:127.0.0.1:0-:4711"]);
        // Sockets of an earlier machine of that name would be in the way.
        let [console, orders] = ["console", "orders"].map(|socket| {
            let _ = std::fs::remove_file(at(socket));
            format!("unix:{},server=on,wait=off", at(socket).display())
        });
        command.arg("-serial").arg(format!("file:{}", at("serial").display()));
        command.args(["-serial", &console, "-qmp", &orders]);
        let drive = |id: &str, path: &Path| format!("if=none,id={id},format=raw,file={}", path.display());
        command.args(["-drive", &drive("disk", disk)]);
        command.args(["-device", &format!("{device},drive=disk,bootindex=0")]);
        if let Some(stick) = stick {
            command.args([
                "-drive",
                &drive("stick", stick),
                "-device",
                "virtio-blk-pci,drive=stick,serial=stick",
            ]);
        }
        let errors = File::create(at("errors")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
        let mut reached = |what: &str| {
            let until = Instant::now() + LIMIT;
            loop {
                if let Ok(stream) = UnixStream::connect(at(what)) {
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    return stream;
                }
                let ended = child.try_wait().unwrap();
                let errors = || std::fs::read_to_string(at("errors")).unwrap_or_default();
                assert!(ended.is_none() && Instant::now() < until, "no {what}: {ended:?} {}", errors());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let (orders, console) = (reached("orders"), BufReader::new(reached("console")));
        let register = forwarded(orders);
        Self { child, console, register, serial: at("serial") }
    }

    /// Waits until it has started.
    fn started(&mut self) {
        let mut seen = Vec::new();
        while !seen.ends_with(b"# ") {
            let mut byte = [0];
            if let Err(error) = self.console.read_exact(&mut byte) {
                let told = std::fs::read_to_string(&self.serial).unwrap();
                panic!("{} does not start: {error}; {told}", self.serial.display());
            }
            seen.push(byte[0]);
        }
        self.console.get_mut().write_all(b"stty -echo; PS1=\n").unwrap();
        // What the terminal had shown before is told with the answer to this.
        self.run("true");
    }

    /// Runs a command at the console; returns how it ended and what it wrote.
    fn run(&mut self, command: &str) -> (i32, String) {
        // In two parts, so that the command itself does not look like its end.
        self.console
            .get_mut()
            .write_all(format!("{command}\nprintf '\\nthe'' end %s\\n' $?\n").as_bytes())
            .unwrap();
        let mut told = String::new();
        loop {
            let mut line = String::new();
            match self.console.read_line(&mut line) {
                Ok(1..) => {}
                wrong => panic!("{command}: {wrong:?}: {told}"),
            }
            match line.trim_end().strip_prefix("the end ") {
                Some(code) => return (code.parse().unwrap(), told),
                None => told.push_str(&line),
            }
        }
    }

    /// Runs a command that has to succeed.
    fn ok(&mut self, command: &str) -> String {
        let (code, told) = self.run(command);
        assert_eq!(code, 0, "{command}: {told}");
        told.trim().replace('\r', "")
    }

    /// One word of a command that may fail, as `systemctl is-active` does.
    fn word(&mut self, command: &str) -> String {
        self.run(command).1.trim().to_owned()
    }

    /// Runs the mover at the console; it has to succeed.
    fn mover(&mut self, args: &str) -> Vec<Value> {
        events(self.ok(&format!("/mnt/conme-mover --output json {args} 2>&1")).as_bytes())
    }

    /// Asks the register; none when nobody answers.
    fn asked(&self, line: &str, end: &str) -> Option<Vec<String>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.register)).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).ok()?;
        let mut lines = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line.ok()?;
            if line == end {
                return Some(lines);
            }
            lines.push(line);
        }
        None
    }

    /// Pulls the plug.
    fn off(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port of this side that leads to the register: QEMU has chosen it.
fn forwarded(mut orders: UnixStream) -> u16 {
    let lines = BufReader::new(orders.try_clone().unwrap()).lines();
    let ask = json!({"execute": "human-monitor-command", "arguments": {"command-line": "info usernet"}});
    writeln!(orders, "{}\n{ask}", json!({"execute": "qmp_capabilities"})).unwrap();
    for line in lines {
        let answer: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let Some(table) = answer["return"].as_str() else { continue };
        let row = table.lines().find(|row| row.contains("HOST_FORWARD")).unwrap_or_else(|| panic!("{table}"));
        return row.split_whitespace().nth(3).unwrap().parse().unwrap();
    }
    panic!("QEMU says nothing");
}

/// Somebody who enters one line after the other, each when the one before has been confirmed.
struct Clerk {
    entered: Arc<AtomicU64>,
    works: JoinHandle<()>,
}

impl Clerk {
    /// Begins to work, and goes on until nobody answers any more.
    fn begins(register: u16) -> Self {
        let entered = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&entered);
        let works = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", register)).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
            for number in 1.. {
                let line = entry(number);
                if writeln!(stream, "{line}").is_err() {
                    return;
                }
                let Some(Ok(answer)) = answers.next() else { return };
                assert_eq!(answer, format!("entered {line}"));
                count.store(number, Ordering::SeqCst);
            }
        });
        Self { entered, works }
    }

    fn entered(&self) -> u64 {
        self.entered.load(Ordering::SeqCst)
    }

    /// Waits until so many lines more are confirmed.
    fn works_on(&self, lines: u64) {
        let (from, until) = (self.entered(), Instant::now() + LIMIT);
        while self.entered() < from + lines {
            assert!(!self.works.is_finished() && Instant::now() < until, "nobody answers the clerk");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many lines were confirmed until nobody answered.
    fn stopped(self) -> u64 {
        let until = Instant::now() + LIMIT;
        while !self.works.is_finished() {
            assert!(Instant::now() < until, "somebody still answers the clerk");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.works.join().unwrap();
        self.entered.load(Ordering::SeqCst)
    }
}

/// What the clerk enters as the line of that number.
fn entry(number: u64) -> String {
    format!("clerk {number} {}", blake3::hash(&number.to_le_bytes()).to_hex())
}

/// Lines of the register in order: nothing of the clerk is missing or too much, nor of what it enters by itself.
fn complete(lines: &[String], clerk: u64) {
    let of = |who: &str| lines.iter().filter(|line| line.starts_with(who)).cloned().collect::<Vec<_>>();
    let (entered, own) = (of("clerk "), of("own "));
    assert_eq!(entered.len() as u64, clerk, "{:?}", entered.last());
    for (number, line) in (1..).zip(&entered) {
        assert_eq!(*line, entry(number));
    }
    for (number, line) in (1..).zip(&own) {
        assert_eq!(*line, format!("own {number}"));
    }
    assert_eq!(entered.len() + own.len(), lines.len());
}

/// What somebody carries to the server: the program, its token, the hooks.
fn stick(site: &Site) -> PathBuf {
    let dir = site.path("stick");
    std::fs::create_dir(&dir).unwrap();
    let put = |name: &str, from: &Path| {
        std::fs::copy(from, dir.join(name)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    std::fs::rename(site.path("token.json"), dir.join("token.json")).unwrap();
    std::fs::write(dir.join("hooks.yaml"), HOOKS).unwrap();
    let program =
        std::env::var_os("CONME_MOVER").map_or(env!("CARGO_BIN_EXE_conme-mover").into(), PathBuf::from);
    put("program", &program);
    // What is shipped is static (`CONME_MOVER`). What is built for tests gets the libraries of this side with it.
    let told = String::from_utf8(Command::new("ldd").arg(&program).output().unwrap().stdout).unwrap();
    let libraries: Vec<_> =
        told.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new).collect();
    for library in &libraries {
        put(library.file_name().unwrap().to_str().unwrap(), library);
    }
    let with = if libraries.is_empty() { "" } else { "/mnt/ld-linux-x86-64.so.2 --library-path /mnt " };
    std::fs::write(dir.join("conme-mover"), format!("#!/bin/sh\nexec {with}/mnt/program \"$@\"\n")).unwrap();
    std::fs::set_permissions(dir.join("conme-mover"), std::fs::Permissions::from_mode(0o755)).unwrap();

    let image = site.path("stick.img");
    File::create(&image).unwrap().set_len(128 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&dir).arg(&image).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    image
}

const HOOKS: &str = "\
hooks:
  stop-register:
    run: [/usr/bin/systemctl, disable, --now, protocollo.service]
    undo: [/usr/bin/systemctl, enable, --now, protocollo.service]
    timeout: 10m
  close-register:
    run: [/usr/bin/systemctl, mask, protocollo.service]
    undo: [/usr/bin/systemctl, unmask, protocollo.service]
    timeout: 10m
  still:
    run: [/usr/sbin/fsfreeze, --freeze, /]
    undo: [/usr/sbin/fsfreeze, --unfreeze, /]
    timeout: 10m
cut-over:
  stop: [stop-register]
  fence: [close-register]
  freeze: [still]
";

/// The data centre: a receiver behind the gateway, and a token with which the server gets in.
fn data_centre(site: &Site) -> (Running, [Running; 2]) {
    site.ok(&["ca", "gateway", "--dir", "ca", "--out", "divides"]);
    let receiver = site.receiver(&["--until-proven"]);
    let place = Running::start(site, &["ca", "serve", "--dir", "ca", "--listen", "127.0.0.1:0"]);
    let name = |of: &str, key: &str| -> String {
        let about: Value = serde_json::from_slice(&std::fs::read(site.path(of)).unwrap()).unwrap();
        about[key].as_str().unwrap().to_owned()
    };
    let table = format!(
        "sites: {{prova: {{identity: divides, line: {{}}}}}}\nroutes:\n  {}: {{site: prova, address: '{}'}}\n  \
         {}: {{site: prova, address: '{}'}}\n",
        name("receiver/about.json", "name"),
        receiver.address(),
        name("ca/about.json", "enrol"),
        place.address(),
    );
    std::fs::write(site.path("table.yaml"), table).unwrap();
    let args = ["gateway", "run", "--listen", "127.0.0.1:0", "--table", "table.yaml", "--state", "gate"];
    let gate = Running::start(site, &args);
    // How a machine sees the loopback interface of this side.
    let address = gate.address().replace("127.0.0.1", "10.0.2.2");
    let token = ["ca", "token", "--dir", "ca", "--source", "srv1", "--target", "disk", "--out", "token.json"];
    site.ok(&[&token[..], &["--enrol", &address, "--receive", &address, "--through-gateway"]].concat());
    (receiver, [place, gate])
}

#[test]
fn a_server_is_moved_while_people_work_and_its_copy_has_every_line_on_other_hardware() {
    let Some(server) = server() else { return };
    let begun = Instant::now();
    let step = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    let site = Site::new();
    let (mut receiver, _open) = data_centre(&site);
    let stick = stick(&site);
    let disk = site.path("disk");
    std::fs::copy(&server.disk, &disk).unwrap();

    let mut old = Machine::on(&server, &site, "old", "nvme,serial=old", &disk, Some(&stick));
    old.started();
    step("the old server has started");
    let clerk = Clerk::begins(old.register);
    clerk.works_on(1);
    old.ok("mount /dev/disk/by-id/virtio-stick /mnt");
    old.mover("enrol --token /mnt/token.json --state /mnt/state");
    assert_ne!(
        old.run("/mnt/conme-mover enrol --token /mnt/token.json --state /mnt/other").0,
        0,
        "a token is for once"
    );

    // People work during the first round and after it; the second one brings what they did.
    let source = "agent --state /mnt/state --source /dev/nvme0n1";
    let before = clerk.entered();
    let first = round(&old.mover(source));
    assert!(clerk.entered() > before, "people had to wait for the copy");
    step("it is copied");
    clerk.works_on(20);
    let second = round(&old.mover(source));
    let content = |round: &Value| round["tally"]["content"].as_u64().unwrap();
    assert!((1..content(&first) / 4).contains(&content(&second)), "{first} {second}");
    step("and what was changed");
    clerk.works_on(20);

    let told = old.mover(&format!("{source} --cut-over --hooks /mnt/hooks.yaml"));
    assert_eq!(told.last().unwrap()["event"], "cutOver", "{told:#?}");
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    let entered = clerk.stopped();
    step("it is cut over");
    assert!(entered > 40);
    assert_eq!(old.asked("all", "end"), None, "two servers would answer");
    let register = "sha256sum /var/lib/protocollo/register";
    let left = old.ok(register);
    // The plug is pulled and put in again: it starts, but the register stays closed.
    old.off();
    let mut old = Machine::on(&server, &site, "old", "nvme,serial=old", &disk, None);

    let evidence = receiver.last("round")["evidence"].as_str().unwrap().to_owned();
    site.ok(&["verify", "--evidence", &evidence, "--authority", "ca/authority.pem", "--target", "copy"]);
    let mut copy = Machine::on(&server, &site, "new", "virtio-blk-pci", &site.path("copy"), None);
    old.started();
    step("the old server has started again");
    assert_eq!(old.word("systemctl is-enabled protocollo"), "masked");
    assert_eq!(old.asked("all", "end"), None, "two servers would answer");
    assert_eq!(old.ok(register), left, "something was entered where it is lost");

    copy.started();
    step("the copy has started");
    assert_eq!(copy.ok("findmnt --noheadings --output SOURCE /"), "/dev/vda1");
    assert_eq!(copy.asked("all", "end"), None, "the copy is open before somebody opened it");
    assert_eq!(copy.ok(register), left);
    copy.ok("systemctl unmask protocollo && systemctl enable --now protocollo");
    let answered = until_within(LIMIT, "the copy does not answer", || copy.asked("all", "end"));
    complete(&answered, entered);
    copy.asked(&entry(entered + 1), &format!("entered {}", entry(entered + 1))).expect("people can work on");
    complete(&copy.asked("all", "end").unwrap(), entered + 1);
}

#[test]
fn a_register_that_lacks_a_line_or_has_one_too_many_is_noticed() {
    let whole: Vec<String> = (1..=3).flat_map(|number| [entry(number), format!("own {number}")]).collect();
    complete(&whole, 3);
    let without = |at: usize| {
        let mut lines = whole.clone();
        lines.remove(at);
        lines
    };
    let again = [&whole[..], &whole[..1]].concat();
    let other = [&whole[..], &["something else".to_owned()]].concat();
    let swapped = {
        let mut lines = whole.clone();
        lines.swap(0, 2);
        lines
    };
    for (lines, clerk) in [
        (without(0), 3),
        (without(1), 3),
        (without(4), 3),
        (again, 3),
        (other, 3),
        (swapped, 3),
        (whole.clone(), 4),
    ] {
        let noticed = std::panic::catch_unwind(|| complete(&lines, clerk));
        assert!(noticed.is_err(), "{lines:?}");
    }
}

/// The round that was told.
fn round(told: &[Value]) -> Value {
    let round = told.iter().find(|event| event["event"] == "round");
    round.unwrap_or_else(|| panic!("{told:#?}")).clone()
}
