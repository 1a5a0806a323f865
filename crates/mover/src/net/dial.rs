//! How an agent gets out: the one place where it opens a connection.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls;

/// Bytes of a proxy's answer at most.
const MAX_ANSWER: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

/// An HTTP proxy that connects to others on demand (`CONNECT`).
#[derive(Clone)]
pub struct Proxy {
    address: String,
    login: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What was said about a proxy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadProxy {
    /// A form that is not known.
    #[error("{0:?} is no proxy: write for example http://proxy.example:3128")]
    Form(String),
    /// A password where everybody sees it.
    #[error(
        "the proxy's name and password do not belong into its address, where every process can read them: put \
         name:password into a file of mode 0600 and give it with --proxy-login"
    )]
    LoginInAddress,
    /// The file cannot be read.
    #[error("{0}: {1}")]
    File(std::path::PathBuf, #[source] std::io::Error),
    /// Others can read it.
    #[error("{0} can be read by others: chmod 600 {0}")]
    Open(std::path::PathBuf),
    /// It is not a name with a password.
    #[error("{0} does not hold one line name:password")]
    Login(std::path::PathBuf),
}

impl FromStr for Proxy {
    type Err = BadProxy;

    fn from_str(text: &str) -> Result<Self, BadProxy> {
        // With a password in it, the text must not be repeated.
        if text.contains('@') {
            return Err(BadProxy::LoginInAddress);
        }
        let bad = || BadProxy::Form(text.into());
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains(['/', ' ']) || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self { address: address.into(), login: None })
    }
}

impl Proxy {
    /// With the name and the password that are in this file.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it holds something else.
    pub fn with_login(self, path: &Path) -> Result<Self, BadProxy> {
        let file = |error| BadProxy::File(path.into(), error);
        if std::fs::metadata(path).map_err(file)?.permissions().mode() & 0o077 != 0 {
            return Err(BadProxy::Open(path.into()));
        }
        let text = std::fs::read_to_string(path).map_err(file)?;
        let login = text.trim_end_matches(['\r', '\n']);
        if !login.contains(':') || login.contains(char::is_control) {
            return Err(BadProxy::Login(path.into()));
        }
        Ok(Self { login: Some(BASE64_STANDARD.encode(login)), ..self })
    }
}

/// Calls `host:port`, through a proxy if there is one.
///
/// # Errors
/// When there is no answer in time, or a refusal: with what to do about it.
pub async fn dial(address: &str, proxy: Option<&Proxy>) -> std::io::Result<TcpStream> {
    let to = proxy.map_or(address, |proxy| &proxy.address);
    let stream = timeout(tls::HANDSHAKE, TcpStream::connect(to))
        .await
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"))
        .flatten()
        .map_err(|error| match proxy {
            Some(proxy) => {
                problem(proxy, &format!("cannot be reached ({error}): check --proxy and the network"))
            }
            None => error,
        })?;
    // Without this, the end of each frame would wait for an acknowledgement of the one before.
    stream.set_nodelay(true)?;
    match proxy {
        None => Ok(stream),
        Some(proxy) => timeout(tls::HANDSHAKE, through(stream, address, proxy))
            .await
            .map_err(|_| problem(proxy, "took the connection but does not answer: is it an HTTP proxy?"))?,
    }
}

fn problem(proxy: &Proxy, what: &str) -> std::io::Error {
    std::io::Error::other(format!("the proxy {} {what}", proxy.address))
}

async fn through(mut stream: TcpStream, address: &str, proxy: &Proxy) -> std::io::Result<TcpStream> {
    let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n");
    if let Some(login) = &proxy.login {
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        // One byte after another: what follows the answer belongs to somebody else.
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(problem(proxy, "closed the connection without an answer: is it an HTTP proxy?"));
            }
            Err(error) => return Err(problem(proxy, &format!("broke off ({error})"))),
        }
        if !answer.ends_with(b"\n") && answer.len() < MAX_ANSWER {
            continue;
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&answer) {
            Ok(httparse::Status::Partial) if answer.len() < MAX_ANSWER => {}
            Ok(httparse::Status::Complete(_)) => {
                return match said(&response, address, proxy.login.is_some()) {
                    None => Ok(stream),
                    Some(what) => Err(problem(proxy, &what)),
                };
            }
            Ok(httparse::Status::Partial) | Err(_) => {
                return Err(problem(proxy, "answers, but not as an HTTP proxy: is that the right port?"));
            }
        }
    }
}

/// What is wrong, and what to do; `None` when it has connected.
fn said(response: &httparse::Response<'_, '_>, address: &str, with_login: bool) -> Option<String> {
    let code = response.code.unwrap_or(0);
    let ways: Vec<String> = response
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("Proxy-Authenticate"))
        .map(|header| {
            String::from_utf8_lossy(header.value).split_whitespace().next().unwrap_or("").to_owned()
        })
        .collect();
    Some(match code {
        200..300 => return None,
        407 if !ways.is_empty() && !ways.iter().any(|way| way.eq_ignore_ascii_case("Basic")) => format!(
            "asks for a login by {}, which is not known here: ask its administrator to let {address} pass without one, \
             or for a login by Basic",
            ways.join(" or ")
        ),
        407 if with_login => "does not take this name and password: check the file of --proxy-login".into(),
        407 => "asks for a name and a password: put name:password into a file of mode 0600 and give it with \
                --proxy-login"
            .into(),
        403 | 405 => {
            format!("does not allow CONNECT to {address} ({code}): ask its administrator to allow it")
        }
        502..=504 => {
            format!("cannot reach {address} ({code}): is the address right, and does a firewall stop it?")
        }
        _ => format!("refuses to connect to {address} ({code} {})", response.reason.unwrap_or("")),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy that says this, and what it was asked.
    async fn asked(answer: &'static str, login: Option<&str>) -> (String, std::io::Result<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy: Proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        if let Some(login) = login {
            let path = dir.path().join("login");
            crate::identity::write_private(&path, login.as_bytes()).unwrap();
            proxy = proxy.with_login(&path).unwrap();
        }
        let answered = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            (String::from_utf8(request).unwrap(), stream)
        });
        let dialled = dial("receiver.example:443", Some(&proxy)).await;
        let (request, _stream) = answered.await.unwrap();
        (request, dialled)
    }

    #[tokio::test]
    async fn a_proxy_connects_and_what_follows_its_answer_is_not_lost() {
        let (request, stream) =
            asked("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nhello", Some("a:b c\n")).await;
        assert!(
            request.starts_with("CONNECT receiver.example:443 HTTP/1.1\r\nHost: receiver.example:443\r\n")
        );
        assert!(request.contains("Proxy-Authorization: Basic YTpiIGM=\r\n"), "{request}");
        let mut hello = [0; 5];
        stream.unwrap().read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
    }

    #[tokio::test]
    async fn what_a_proxy_refuses_is_told_with_what_to_do() {
        let basic =
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
        for (answer, login, words) in [
            (basic, None, "--proxy-login"),
            (basic, Some("a:secret"), "check the file"),
            ("HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", None, "login by NTLM"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", None, "ask its administrator to allow it"),
            ("HTTP/1.0 503 Service Unavailable\r\n\r\n", None, "does a firewall stop it"),
            ("SSH-2.0-OpenSSH_9.9\r\n", None, "is that the right port"),
        ] {
            let error = asked(answer, login).await.1.unwrap_err().to_string();
            assert!(error.contains(words), "{answer}: {error}");
            assert!(!error.contains("secret"));
        }
    }

    #[tokio::test]
    async fn a_proxy_that_never_stops_talking_is_left() {
        let endless: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(20_000)).into());
        let (_, stream) = asked(endless, None).await;
        assert!(stream.unwrap_err().to_string().contains("right port"));
    }

    #[test]
    fn a_password_is_taken_from_a_private_file_only() {
        assert!(matches!("http://u:p@proxy:1".parse::<Proxy>(), Err(BadProxy::LoginInAddress)));
        for bad in ["proxy", "https://proxy:1/x", "http://:3", "http://proxy:99999"] {
            assert!(matches!(bad.parse::<Proxy>(), Err(BadProxy::Form(_))), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("login");
        let proxy = || "proxy:3128".parse::<Proxy>().unwrap();
        assert!(matches!(proxy().with_login(&path), Err(BadProxy::File(..))));
        std::fs::write(&path, "a:b").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(proxy().with_login(&path), Err(BadProxy::Open(_))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!format!("{:?}", proxy().with_login(&path).unwrap()).contains("YTpi"));
        std::fs::write(&path, "a:b\r\nX-Injected: 1").unwrap();
        assert!(matches!(proxy().with_login(&path), Err(BadProxy::Login(_))));
    }
}
