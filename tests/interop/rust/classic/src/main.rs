//! A peer of the classic protocol version: one subcommand for each part that a Rust node plays in trionode's interop tests.
//!
//! Every line on standard output is one fact: a word, then what belongs to it. What fails says so on standard error, exit code 1.

use std::{env, error, future::pending, process::exit, result, time::Duration};

use ockam::{
    access_control::AllowAll,
    authenticated_storage::InMemoryStorage,
    identity::{Identity, IdentityIdentifier, TrustEveryonePolicy, TrustIdentifierPolicy},
    remote::RemoteForwarder,
    route,
    stream::Stream,
    unique_with_prefix,
    vault::Vault,
    Address, Context, ForwardingService, NodeBuilder, Result, Route, Routed, TcpTransport, Worker, TCP,
};
use tokio::io::{stdin, AsyncBufReadExt, BufReader};

const USAGE: &str = "usage: peer SUBCOMMAND
  respond [--trust ID]
  initiate HOST:PORT [--via ADDRESS] [--plain] [--trust ID] [--count N]
  outlet TARGET_HOST:PORT [--trust ID]
  inlet LISTEN_HOST:PORT NODE_HOST:PORT [--via ADDRESS] [--plain] [--trust ID]
  relay NODE_HOST:PORT NAME [--unbeaten] [--outlet TARGET_HOST:PORT] [--trust ID]
  relay-service
  bob HUB_HOST:PORT [--trust ID]
  alice HUB_HOST:PORT TO_ALICE_STREAM TO_BOB_STREAM [--trust ID]
also: --timeout SECONDS for a handshake and for an answer (120); --unbeaten registers at a Rust service, without heartbeats";

type Failure = Box<dyn error::Error + Send + Sync>;
type Outcome = result::Result<(), Failure>;

fn main() {
    let (ctx, mut executor) = NodeBuilder::new().no_logging().build();
    let ended = executor.execute(async move {
        if let Err(failure) = play(ctx).await {
            eprintln!("{failure}");
            exit(1);
        }
        exit(0);
    });
    if let Err(failure) = ended {
        eprintln!("{failure}");
        exit(1);
    }
}

async fn play(ctx: Context) -> Outcome {
    let options = Options::read()?;
    let peer = Peer::new(ctx, options).await?;
    let places: Vec<&str> = peer.options.places.iter().map(String::as_str).collect();
    match *places.as_slice() {
        ["respond"] => peer.respond().await,
        ["initiate", node] => peer.initiate(node).await,
        ["outlet", target] => peer.outlet(target).await,
        ["inlet", at, node] => peer.inlet(at, node).await,
        ["relay", node, name] => peer.relay(node, name).await,
        ["relay-service"] => peer.relay_service().await,
        ["bob", hub] => peer.bob(hub).await,
        ["alice", hub, to_alice, to_bob] => peer.alice(hub, to_alice, to_bob).await,
        _ => Err(USAGE.into()),
    }
}

/// The command line: words in their order, and the options.
struct Options {
    places: Vec<String>,
    trust: Option<IdentityIdentifier>,
    via: Option<String>,
    outlet: Option<String>,
    count: usize,
    timeout: Duration,
    plain: bool,
    unbeaten: bool,
}

impl Options {
    fn read() -> result::Result<Self, Failure> {
        let mut options = Options {
            places: vec![],
            trust: None,
            via: None,
            outlet: None,
            count: 200,
            timeout: Duration::from_secs(120),
            plain: false,
            unbeaten: false,
        };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--trust" => options.trust = Some(value()?.as_str().try_into()?),
                "--via" => options.via = Some(value()?),
                "--outlet" => options.outlet = Some(value()?),
                "--count" => options.count = value()?.parse()?,
                "--timeout" => options.timeout = Duration::from_secs(value()?.parse()?),
                "--plain" => options.plain = true,
                "--unbeaten" => options.unbeaten = true,
                _ if word.starts_with("--") => return Err(USAGE.into()),
                _ => options.places.push(word),
            }
        }
        Ok(options)
    }
}

/// A node with an identity, as one subcommand uses it.
struct Peer {
    options: Options,
    ctx: Context,
    tcp: TcpTransport,
    identity: Identity<Vault, InMemoryStorage>,
}

impl Peer {
    async fn new(ctx: Context, options: Options) -> Result<Self> {
        let tcp = TcpTransport::create(&ctx).await?;
        let identity = Identity::create(&ctx, &Vault::create()).await?;
        Ok(Peer {
            options,
            ctx,
            tcp,
            identity,
        })
    }

    async fn respond(&self) -> Outcome {
        self.serve().await?;
        println!("listening {}", self.tcp.listen("127.0.0.1:0").await?);
        println!("identity {}", self.identity.identifier());
        pending().await
    }

    async fn initiate(&self, node: &str) -> Outcome {
        println!("identity {}", self.identity.identifier());
        let way = self.way(node).await?;
        for n in 0..self.options.count {
            let text = sample(n);
            let echo = self.ask(&way, text.clone()).await?;
            if echo != text {
                return Err(format!("message {n}: sent {} bytes, received {} others", text.len(), echo.len()).into());
            }
        }
        println!("echoed {}", self.options.count);
        Ok(())
    }

    async fn outlet(&self, target: &str) -> Outcome {
        self.serve().await?;
        self.tcp.create_outlet("outlet", target, AllowAll).await?;
        println!("listening {}", self.tcp.listen("127.0.0.1:0").await?);
        println!("identity {}", self.identity.identifier());
        pending().await
    }

    async fn inlet(&self, at: &str, node: &str) -> Outcome {
        println!("identity {}", self.identity.identifier());
        let way = self.way(node).await?;
        let (_, at) = self.tcp.create_inlet(at, extended(&way, "outlet"), AllowAll).await?;
        println!("listening {at}");
        pending().await
    }

    async fn relay(&self, node: &str, name: &str) -> Outcome {
        self.serve().await?;
        if let Some(target) = &self.options.outlet {
            self.tcp.create_outlet("outlet", target.as_str(), AllowAll).await?;
        }
        let node = route![(TCP, node)];
        let relay = if self.options.unbeaten {
            RemoteForwarder::create_static_without_heartbeats(&self.ctx, node, name, AllowAll).await?
        } else {
            RemoteForwarder::create_static(&self.ctx, node, name, AllowAll).await?
        };
        println!("relay {}", relay.remote_address());
        println!("identity {}", self.identity.identifier());
        pending().await
    }

    async fn relay_service(&self) -> Outcome {
        self.serve().await?;
        // This version's Rust service listens at one address, for names and for `register`.
        ForwardingService::create(&self.ctx, "forwarding_service", AllowAll, AllowAll).await?;
        println!("listening {}", self.tcp.listen("127.0.0.1:0").await?);
        println!("identity {}", self.identity.identifier());
        pending().await
    }

    /// The seed guide's Bob: what reaches him comes out of the stream that Alice sends to.
    async fn bob(&self, hub: &str) -> Outcome {
        self.serve().await?;
        let (to_alice, to_bob) = (unique_with_prefix("bob_to_alice"), unique_with_prefix("alice_to_bob"));
        self.stream("bob")
            .await?
            .connect(route![(TCP, hub)], to_alice.clone(), to_bob.clone())
            .await?;
        println!("streams {to_alice} {to_bob}");
        println!("identity {}", self.identity.identifier());
        pending().await
    }

    /// The seed guide's Alice: a channel through both streams, and then a message for every line of input.
    async fn alice(&self, hub: &str, to_alice: &str, to_bob: &str) -> Outcome {
        println!("identity {}", self.identity.identifier());
        let (sender, _receiver) = self
            .stream("alice")
            .await?
            .connect(route![(TCP, hub)], to_bob, to_alice)
            .await?;
        let way = self.open_channel(route![sender.clone(), "listener"]).await?;
        let mut lines = BufReader::new(stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            println!("echo {}", self.ask(&way, line).await?);
        }
        Ok(())
    }

    async fn stream(&self, client: &str) -> Result<Stream> {
        let stream = Stream::new(&self.ctx).await?;
        Ok(stream
            .stream_service("stream_kafka")
            .index_service("stream_kafka_index")
            .client_id(unique_with_prefix(client)))
    }

    /// The way to the workers of a node, or of a peer behind a relay there: plain, or through a channel.
    async fn way(&self, node: &str) -> Result<Route> {
        self.tcp.connect(node).await?;
        let mut way: Route = route![(TCP, node)];
        if let Some(hop) = &self.options.via {
            way = extended(&way, hop);
        }
        if self.options.plain {
            return Ok(way);
        }
        self.open_channel(extended(&way, "listener")).await
    }

    async fn open_channel(&self, listener: Route) -> Result<Route> {
        let timeout = self.options.timeout;
        let channel = match &self.options.trust {
            Some(trusted) => {
                let trust = TrustIdentifierPolicy::new(trusted.clone());
                self.identity
                    .create_secure_channel_extended(listener, trust, timeout)
                    .await?
            }
            None => {
                self.identity
                    .create_secure_channel_extended(listener, TrustEveryonePolicy, timeout)
                    .await?
            }
        };
        println!("established");
        Ok(channel.into())
    }

    async fn ask(&self, way: &Route, text: String) -> Result<String> {
        self.ctx
            .send_and_receive_with_timeout(extended(way, "echoer"), text, self.options.timeout)
            .await
    }

    /// Start the echoer and the channel listener.
    async fn serve(&self) -> Result<()> {
        self.ctx.start_worker("echoer", Echoer, AllowAll, AllowAll).await?;
        match &self.options.trust {
            Some(trusted) => {
                let trust = TrustIdentifierPolicy::new(trusted.clone());
                self.identity.create_secure_channel_listener("listener", trust).await
            }
            None => {
                self.identity
                    .create_secure_channel_listener("listener", TrustEveryonePolicy)
                    .await
            }
        }
    }
}

/// Sends every text back, and says how long it was.
struct Echoer;

#[ockam::worker]
impl Worker for Echoer {
    type Context = Context;
    type Message = String;

    async fn handle_message(&mut self, ctx: &mut Context, message: Routed<String>) -> Result<()> {
        println!("received {}", message.len());
        ctx.send(message.return_route(), message.body()).await
    }
}

fn extended(way: &Route, hop: impl Into<Address>) -> Route {
    way.clone().modify().append(hop).into()
}

/// The n-th text: empty, short, long and as long as this version can send, in turn, and two that are not ASCII.
fn sample(n: usize) -> String {
    let pattern = format!("{n} ");
    match n % 7 {
        0 => String::new(),
        1 => "x".to_string(),
        2 => pattern.chars().cycle().take(100).collect(),
        3 => pattern.chars().cycle().take(1_000).collect(),
        4 => pattern.chars().cycle().take(60_000).collect(),
        5 => format!("{n}: Grüße, 世界, \u{1F30D}\u{0}\u{301} \u{202E}"),
        _ => "é".repeat(30_000),
    }
}
