//! A client that sends exactly what it is told, and an API to send it to.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use admin_api::{Access, Alerts, Api, Control, History, Recorder, serve};
use config::{Admin, Config};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{FakePlane, FakeStore, Folder};

const HISTORY: &str = "history.db";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) control: Arc<Control>,
    pub(crate) plane: Arc<FakePlane>,
    pub(crate) store: Arc<FakeStore>,
    pub(crate) history: Arc<Recorder>,
    folder: Folder,
    shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
    telling: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(config: Arc<Config>) -> Self {
        let admin = config.admin.clone();
        Self::with(config, &admin).await
    }

    pub(crate) async fn with(config: Arc<Config>, admin: &Admin) -> Self {
        Self::over(None, config, admin).await
    }

    pub(crate) async fn over(tls: Option<Arc<rustls::ServerConfig>>, config: Arc<Config>, admin: &Admin) -> Self {
        let (plane, store) = (Arc::new(FakePlane::default()), Arc::new(FakeStore::default()));
        let control = Control::open(config, store.clone(), plane.clone()).await.unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = Folder::new();
        let settings = config::History { path: folder.file(HISTORY), ..admin.history.clone() };
        let history = Arc::new(Recorder::new(control.clone(), History::new(settings)));
        let alerts = Alerts::new(control.clone());
        let api = Api::new(control.clone(), Access::open(admin).unwrap(), alerts.clone(), history.clone());
        let shutdown = CancellationToken::new();
        let telling = tokio::spawn(alerts.run(shutdown.clone()));
        let task = tokio::spawn(serve(listener, tls, api, shutdown.clone()));
        Self { address, control, plane, store, history, folder, shutdown, task, telling }
    }

    pub(crate) fn history_path(&self) -> PathBuf {
        self.folder.file(HISTORY)
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.expect("it stops").unwrap().unwrap();
        timeout(PATIENCE, self.telling).await.expect("it stops").unwrap();
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    pub(crate) async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        let (mut reader, mut writer) = stream.split();
        let mut bytes = Vec::new();
        let write = async {
            // The server may answer, and close, before it has taken everything.
            let _ = writer.write_all(request).await;
        };
        let exchange = async { tokio::join!(write, reader.read_to_end(&mut bytes)).1 };
        timeout(PATIENCE, exchange).await.expect("an answer in time").unwrap();
        Answer::parse(&bytes)
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.raw(&[head.as_bytes(), body].concat()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.as_bytes()).await
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// A problem document of this status, with everything a caller needs.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail", "cure"] {
            assert!(problem[member].is_string(), "{member} is missing: {problem}");
        }
        problem
    }
}
