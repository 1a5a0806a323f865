//! Free ports on the loopback interface.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail};

/// The lowest port handed out; below it are well-known services.
const FIRST: u16 = 12_000;

/// Picks `count` different ports on which nobody listens.
///
/// They lie below the range from which the kernel takes the ports of outgoing connections: a server that is
/// stopped and started again on its port (as the fault tests do) would otherwise now and then find it taken.
pub(crate) fn pick(count: usize) -> Result<Vec<u16>> {
    let end = ephemeral_start().unwrap_or(32_768);
    // All listeners are held until the end, so that no port is picked twice.
    let mut held: Vec<TcpListener> = Vec::new();
    for _ in 0..count * 200 {
        if held.len() == count {
            break;
        }
        let candidate = if end > FIRST + 1000 {
            let offset = getrandom::u32().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
            FIRST + u16::try_from(offset % u32::from(end - FIRST))?
        } else {
            0
        };
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)) {
            held.push(listener);
        }
    }
    if held.len() < count {
        bail!("no {count} free ports on 127.0.0.1");
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// The port that was used before when it is free, else another one.
pub(crate) fn keep_or_pick(before: Option<u16>) -> Result<u16> {
    if let Some(port) = before.filter(|port| is_free(*port)) {
        return Ok(port);
    }
    match pick(1)?.first() {
        Some(port) => Ok(*port),
        None => bail!("no free port on 127.0.0.1"),
    }
}

/// True when a server could listen there now.
pub(crate) fn is_free(port: u16) -> bool {
    // The standard library sets SO_REUSEADDR, so connections in TIME_WAIT do not count.
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// True when somebody accepts connections there.
pub(crate) fn answers(port: u16) -> bool {
    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_millis(500)).is_ok()
}

fn ephemeral_start() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_free_and_outside_the_ephemeral_range() {
        let mut ports = pick(20).unwrap();
        let end = ephemeral_start().unwrap();
        for port in &ports {
            assert!(!answers(*port));
            assert!(*port >= FIRST && (end <= FIRST + 1000 || *port < end), "{port}");
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_port_is_kept_unless_taken() {
        let port = pick(1).unwrap()[0];
        assert_eq!(keep_or_pick(Some(port)).unwrap(), port);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(answers(port));
        assert_ne!(keep_or_pick(Some(port)).unwrap(), port);
    }
}
