//! Listening, TLS, limits of the transport, and the way out.
//!
//! # Invariants
//! - SERVER-1 a shutdown lets running requests finish within the drain time, and then ends. Test: `tests::shutdown_drains`.
//! - SERVER-2 a session that belongs to a connection ends with it. Test: `tests::a_closed_connection_rolls_back`.
//! - SERVER-3 whatever was answered can be read to its end, also by a client that still talks while we close. Tests:
//!   `tests::a_closing_connection_hears_the_client_out`, `tests::a_client_that_does_not_close_is_left`.

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tonic::transport::server::Connected;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::error::{Error, Result};
use crate::options::{Address, FlightOptions};
use crate::service::Service;

/// How often idle sessions and unfetched results are looked for.
const JANITOR_PERIOD: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a closed connection waits for the client to close its side.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes in flight of one stream and of one connection towards us: enough for a fast bulk load.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Serves until `shutdown` resolves, then drains. Returns when the last request has ended or the drain time is over.
pub async fn serve(options: FlightOptions, engine: sql::Engine, shutdown: impl Future<Output = ()>) -> Result<()> {
    Server::bind(options, engine).await?.run(shutdown).await
}

/// A server that is bound to its addresses, but does not answer yet.
#[derive(Debug)]
pub struct Server {
    options: FlightOptions,
    service: Service,
    listeners: Vec<Bound>,
    /// The transport of the TCP listeners, and of the local sockets.
    tcp: tonic::transport::Server,
    local: tonic::transport::Server,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

impl Server {
    /// Reads the certificates and binds every listener.
    pub async fn bind(options: FlightOptions, engine: sql::Engine) -> Result<Server> {
        let local = transport(&options);
        let tcp = match &options.tls {
            Some(tls) => secure(local.clone(), tls)?,
            None => local.clone(),
        };
        let mut listeners = Vec::new();
        for address in &options.listeners {
            listeners.push(match address {
                Address::Tcp(address) => {
                    let failed = |source| Error::Listen { address: address.to_string(), source };
                    let listener = TcpListener::bind(address).await.map_err(failed)?;
                    let local = listener.local_addr().map_err(failed)?;
                    Bound::Tcp(listener, local)
                }
                Address::Unix(path) => {
                    let failed = |source| Error::Listen { address: path.display().to_string(), source };
                    replace_stale_socket(path).await.map_err(failed)?;
                    Bound::Unix(UnixListener::bind(path).map_err(failed)?, path.clone())
                }
            });
        }
        let service = Service::new(engine, &options)?;
        Ok(Server { options, service, listeners, tcp, local })
    }

    /// The addresses with the ports that the system chose.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners
            .iter()
            .map(|bound| match bound {
                Bound::Tcp(_, address) => Address::Tcp(*address),
                Bound::Unix(_, path) => Address::Unix(path.clone()),
            })
            .collect()
    }

    /// The service, whose metrics can be read while the server runs.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Serves until `shutdown` resolves, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let Server { options, service, listeners, tcp, local } = self;
        let (stop, stopped) = watch::channel(false);
        let (gone, mut disconnected) = mpsc::unbounded_channel();
        let door = Arc::new(Door {
            permits: Arc::new(Semaphore::new(options.limits.connections_max)),
            next: AtomicU64::new(1),
            gone,
            service: service.clone(),
        });

        let janitor = tokio::spawn({
            let service = service.clone();
            async move {
                let mut period = tokio::time::interval(JANITOR_PERIOD);
                loop {
                    tokio::select! {
                        _ = period.tick() => service.expire().await,
                        connection = disconnected.recv() => match connection {
                            Some(connection) => service.disconnected(connection).await,
                            None => return,
                        },
                    }
                }
            }
        });

        let mut servers = JoinSet::new();
        for bound in listeners {
            let mut server = match bound {
                Bound::Tcp(..) => tcp.clone(),
                Bound::Unix(..) => local.clone(),
            };
            let mut stopped = stopped.clone();
            let ended = async move {
                // The sender outlives the servers; an error means the same as `true`.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            let router = server.add_service(service.clone().into_server(&options));
            let incoming = Incoming { bound, door: Arc::clone(&door) };
            servers.spawn(router.serve_with_incoming_shutdown(incoming, ended));
        }
        drop(door);

        let mut shutdown = std::pin::pin!(shutdown);
        let mut outcome = Ok(());
        tokio::select! {
            () = &mut shutdown => {}
            // A listener that ends by itself has failed.
            Some(ended) = servers.join_next() => outcome = joined(ended),
        }
        tracing::info!("draining");
        service.begin_shutdown();
        stop.send_replace(true);
        let drained = async {
            while let Some(ended) = servers.join_next().await {
                if let Err(error) = joined(ended) {
                    tracing::warn!(error = %error, "a listener failed while draining");
                }
            }
        };
        if tokio::time::timeout(options.drain, drained).await.is_err() {
            tracing::warn!("the drain time is over; the remaining requests are cut off");
        }
        servers.shutdown().await;
        janitor.abort();
        service.close_all().await;
        outcome
    }
}

fn joined(ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>) -> Result<()> {
    match ended {
        Ok(result) => Ok(result?),
        Err(error) => Err(Error::Internal(format!("a listener stopped: {error}"))),
    }
}

fn transport(options: &FlightOptions) -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(options.keepalive))
        .http2_keepalive_timeout(Some(options.keepalive))
        .http2_max_header_list_size(options.limits.header_bytes_max)
        .http2_max_pending_accept_reset_streams(Some(128))
        .max_concurrent_streams(options.limits.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

fn secure(server: tonic::transport::Server, tls: &crate::options::TlsOptions) -> Result<tonic::transport::Server> {
    let mut config =
        ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key)).timeout(TLS_HANDSHAKE);
    if let Some(ca) = &tls.client_ca {
        config = config.client_ca_root(Certificate::from_pem(ca)).client_auth_optional(tls.client_optional);
    }
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    server.tls_config(config).map_err(|error| Error::Tls(with_sources(&error)))
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// Removes the socket file of a server that is gone; one that answers is left alone.
async fn replace_stale_socket(path: &PathBuf) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server answers there"));
            }
            std::fs::remove_file(path)
        }
        // Binding fails with the right message for other kinds of files.
        _ => Ok(()),
    }
}

/// What connections of all listeners share.
#[derive(Debug)]
struct Door {
    permits: Arc<Semaphore>,
    next: AtomicU64,
    gone: mpsc::UnboundedSender<u64>,
    service: Service,
}

/// Accepts connections.
struct Incoming {
    bound: Bound,
    door: Arc<Door>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let accepted = match &this.bound {
                Bound::Tcp(listener, _) => listener.poll_accept(context).map_ok(|(stream, peer)| {
                    // Requests and answers are small and interleaved.
                    let _ = stream.set_nodelay(true);
                    (Socket::Tcp(stream), Peer::Tcp(peer))
                }),
                Bound::Unix(listener, _) => {
                    listener.poll_accept(context).map_ok(|(stream, _)| (Socket::Unix(stream), Peer::Unix))
                }
            };
            match accepted {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok((socket, peer))) => {
                    let Ok(permit) = Arc::clone(&this.door.permits).try_acquire_owned() else {
                        tracing::warn!(%peer, "refused a connection: all are in use");
                        continue;
                    };
                    this.door.service.count_connection();
                    let number = this.door.next.fetch_add(1, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(Connection {
                        socket,
                        linger: None,
                        info: ConnectionInfo { number, peer },
                        gone: this.door.gone.clone(),
                        _permit: permit,
                    })));
                }
            }
        }
    }
}

/// The other end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    Unix,
}

impl Peer {
    /// The address; none of a local socket.
    pub(crate) fn ip(self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("local socket"),
        }
    }
}

/// Which connection a request came over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) number: u64,
    pub(crate) peer: Peer,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An accepted connection; says when it ends.
struct Connection {
    socket: Socket,
    /// When to stop waiting for the client's end; none before our own end is sent.
    linger: Option<Pin<Box<Sleep>>>,
    info: ConnectionInfo,
    gone: mpsc::UnboundedSender<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The janitor may be gone already, with the server.
        let _ = self.gone.send(self.info.number);
    }
}

impl Connection {
    /// Ready when the client has had its time to close.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.linger {
            Some(linger) => linger.as_mut().poll(context).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tcp(stream) => stream.is_write_vectored(),
            Socket::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    /// Sends our end, then reads until the client's. A socket closed with bytes unread is reset, and a reset takes what
    /// the client has not read yet: the window updates it sends while it reads would cost it the end of its result.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let sent = match &mut self.socket {
                Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
                Socket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            };
            std::task::ready!(sent)?;
            self.linger = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let mut discarded = [MaybeUninit::uninit(); 4096];
        // Bounded, because a client that sends without end must not keep this task from looking at the clock.
        for _ in 0..64 {
            let mut buffer = ReadBuf::uninit(&mut discarded);
            match self.as_mut().poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                // The end, or a connection that is broken anyway.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.poll_linger(context),
            }
        }
        context.waker().wake_by_ref();
        self.poll_linger(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (gone, _) = mpsc::unbounded_channel();
        let info = ConnectionInfo { number: 1, peer: Peer::Tcp(peer) };
        (Connection { socket: Socket::Tcp(stream), linger: None, info, gone, _permit: permit }, client)
    }

    #[tokio::test]
    async fn a_closing_connection_hears_the_client_out() {
        let (mut connection, mut client) = pair().await;
        client.write_all(b"never read by the server").await.unwrap();
        let answer = vec![7; 100_000];
        connection.write_all(&answer).await.unwrap();
        let closing = tokio::spawn(async move { connection.shutdown().await });
        // The client talks on after the server's end has come, and only then reads.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.write_all(b"a window update").await.unwrap();
        }
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, answer);
        assert!(!closing.is_finished(), "it waits for the client's end");
        drop(client);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_close_is_left() {
        let (mut connection, client) = pair().await;
        let began = tokio::time::Instant::now();
        connection.shutdown().await.unwrap();
        assert!(began.elapsed() >= LINGER && began.elapsed() < 2 * LINGER, "{:?}", began.elapsed());
        drop(client);
    }
}
