//! A peer of the current protocol version: one subcommand for each part that a Rust node plays in trionode's interop tests.
//!
//! Every line on standard output is one fact: a word, then what belongs to it. What fails says so on standard error, exit code 1.

use std::{env, error, future::pending, process::exit, result, sync::Arc, time::Duration};

use ockam::{
    access_control::AllowAll,
    flow_control::FlowControlId,
    identity::{
        models::{CredentialAndPurposeKey, CredentialSchemaIdentifier},
        utils::AttributesBuilder,
        CredentialAccessControl, Identifier, SecureChannelListenerOptions, SecureChannelOptions, TrustIdentifierPolicy,
    },
    node,
    remote::RemoteRelayOptions,
    tcp::{
        TcpConnection, TcpConnectionOptions, TcpInletOptions, TcpListenerOptions, TcpOutletOptions, TcpTransport,
        TcpTransportExtension,
    },
    transport::HostnamePort,
    vault::SigningKeyType,
    Address, Context, MessageSendReceiveOptions, Node, NodeBuilder, RelayService, RelayServiceOptions, Result, Route,
    Routed, Worker,
};
use tokio::io::{stdin, AsyncBufReadExt, AsyncReadExt, BufReader};

const USAGE: &str = "usage: peer SUBCOMMAND
  respond [--trust ID]
  initiate HOST:PORT [--via ADDRESS] [--plain] [--trust ID] [--count N] [--linger]
  outlet TARGET_HOST:PORT [--trust ID]
  inlet LISTEN_HOST:PORT NODE_HOST:PORT [--via ADDRESS] [--plain] [--trust ID]
  relay NODE_HOST:PORT NAME [--secure] [--outlet TARGET_HOST:PORT] [--trust ID]
  relay-service
  authority
--authority HISTORY accepts credentials of that identity; --require NAME=VALUE, given with it, closes the echoer to peers
without that attribute; --present prints `history HISTORY`, reads a credential from standard input, and presents it.
authority prints `history HISTORY`, and for each line `HISTORY NAME=VALUE...` of standard input `credential CREDENTIAL`.
also: --p256 for an identity on that curve, --timeout SECONDS for a handshake and for an answer (120);
--linger stays, its channel closed, until standard input ends: who exits at once may take the Close along unsent";

type Outcome = result::Result<(), Box<dyn error::Error + Send + Sync>>;

fn main() {
    let (ctx, executor) = NodeBuilder::new().no_logging().build();
    if let Err(failure) = executor.get_runtime().block_on(play(ctx)) {
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
        ["authority"] => peer.authority().await,
        _ => Err(USAGE.into()),
    }
}

/// The command line: words in their order, and the options.
struct Options {
    places: Vec<String>,
    trust: Option<Identifier>,
    authority: Option<String>,
    require: Vec<(Vec<u8>, Vec<u8>)>,
    present: bool,
    via: Option<String>,
    outlet: Option<String>,
    count: usize,
    timeout: Duration,
    plain: bool,
    secure: bool,
    linger: bool,
    p256: bool,
}

impl Options {
    fn read() -> result::Result<Self, Box<dyn error::Error + Send + Sync>> {
        let mut options = Options {
            places: vec![],
            trust: None,
            authority: None,
            require: vec![],
            present: false,
            via: None,
            outlet: None,
            count: 200,
            timeout: Duration::from_secs(120),
            plain: false,
            secure: false,
            linger: false,
            p256: false,
        };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--trust" => options.trust = Some(value()?.as_str().try_into()?),
                "--authority" => options.authority = Some(value()?),
                "--require" => {
                    let (name, wanted) = attribute(&value()?)?;
                    options.require.push((name.into(), wanted.into()));
                }
                "--present" => options.present = true,
                "--via" => options.via = Some(value()?),
                "--outlet" => options.outlet = Some(value()?),
                "--count" => options.count = value()?.parse()?,
                "--timeout" => options.timeout = Duration::from_secs(value()?.parse()?),
                "--plain" => options.plain = true,
                "--linger" => options.linger = true,
                "--secure" => options.secure = true,
                "--p256" => options.p256 = true,
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
    node: Node,
    tcp: Arc<TcpTransport>,
    identifier: Identifier,
    authority: Option<Identifier>,
    credential: Option<CredentialAndPurposeKey>,
}

impl Peer {
    async fn new(ctx: Context, options: Options) -> result::Result<Self, Box<dyn error::Error + Send + Sync>> {
        let node = node(ctx).await?;
        let key = if options.p256 {
            SigningKeyType::ECDSASHA256CurveP256
        } else {
            SigningKeyType::EdDSACurve25519
        };
        let identifier = node
            .identities_creation()
            .identity_builder()
            .with_random_key(key)
            .build()
            .await?;
        let tcp = node.create_tcp_transport()?;
        let authority = match &options.authority {
            Some(history) => Some(node.import_identity_hex(None, history).await?),
            None => None,
        };
        let mut peer = Peer {
            options,
            node,
            tcp,
            identifier,
            authority,
            credential: None,
        };
        if peer.options.present {
            peer.print_history().await?;
            let mut line = String::new();
            BufReader::new(stdin()).read_line(&mut line).await?;
            peer.credential = Some(CredentialAndPurposeKey::decode_from_string(line.trim())?);
        }
        Ok(peer)
    }

    async fn print_history(&self) -> Result<()> {
        let history = self.node.identities().export_identity(&self.identifier).await?;
        let hex: String = history.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("history {hex}");
        Ok(())
    }

    /// Issue a credential for each line of standard input: the history of its subject, and attributes.
    async fn authority(&self) -> Outcome {
        self.print_history().await?;
        let mut lines = BufReader::new(stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let mut words = line.split_whitespace();
            let history = words.next().ok_or("a line without a history")?;
            let subject = self.node.import_identity_hex(None, history).await?;
            let mut attributes = AttributesBuilder::with_schema(CredentialSchemaIdentifier(1));
            for word in words {
                let (name, value) = attribute(word)?;
                attributes = attributes.with_attribute(name, value);
            }
            let credential = self
                .node
                .credentials()
                .credentials_creation()
                .issue_credential(
                    &self.identifier,
                    &subject,
                    attributes.build(),
                    Duration::from_secs(3600),
                )
                .await?;
            println!("credential {}", credential.encode_as_string()?);
        }
        Ok(())
    }

    async fn respond(&self) -> Outcome {
        let (at, source) = self.listen().await?;
        self.serve(&[source])?;
        println!("listening {at}");
        println!("identity {}", self.identifier);
        pending().await
    }

    async fn initiate(&self, node: &str) -> Outcome {
        let connection = self.connect(node).await?;
        println!("identity {}", self.identifier);
        let (way, channel) = self.way(&connection).await?;
        for n in 0..self.options.count {
            let text = sample(n);
            let options = MessageSendReceiveOptions::new().with_timeout(self.options.timeout);
            let route = way.clone() + "echoer";
            let echo: String = self
                .node
                .send_and_receive_extended(route, text.clone(), options)
                .await?
                .into_body()?;
            if echo != text {
                return Err(format!("message {n}: sent {} bytes, received {} others", text.len(), echo.len()).into());
            }
        }
        println!("echoed {}", self.options.count);
        if let Some(channel) = channel {
            self.node
                .secure_channels()
                .stop_secure_channel(self.node.context(), &channel)?;
        }
        if self.options.linger {
            stdin().read_to_end(&mut vec![]).await?;
        }
        Ok(())
    }

    async fn outlet(&self, target: &str) -> Outcome {
        let (at, source) = self.listen().await?;
        let channels = self.serve(&[source.clone()])?;
        self.open_outlet(target, &[source, channels])?;
        println!("listening {at}");
        println!("identity {}", self.identifier);
        pending().await
    }

    async fn inlet(&self, at: &str, node: &str) -> Outcome {
        let connection = self.connect(node).await?;
        println!("identity {}", self.identifier);
        let (way, _) = self.way(&connection).await?;
        let inlet = self
            .tcp
            .create_inlet(at, way + "outlet", TcpInletOptions::new())
            .await?;
        println!("listening {}", inlet.socket_address());
        pending().await
    }

    async fn relay(&self, node: &str, name: &str) -> Outcome {
        let connection = self.connect(node).await?;
        let mut way: Route = connection.sender_address().clone().into();
        let mut source = connection.flow_control_id().clone();
        if self.options.secure {
            let channel = self
                .node
                .create_secure_channel(&self.identifier, way + "listener", self.channel_options()?)
                .await?;
            println!("established");
            way = channel.encryptor_address().clone().into();
            source = channel.flow_control_id().clone();
        }
        let channels = self.serve(&[source.clone()])?;
        if let Some(target) = &self.options.outlet {
            self.open_outlet(target, &[source, channels])?;
        }
        let relay = self
            .node
            .create_static_relay(way, name, RemoteRelayOptions::new())
            .await?;
        println!("relay {}", relay.remote_address());
        println!("identity {}", self.identifier);
        pending().await
    }

    async fn relay_service(&self) -> Outcome {
        let (at, source) = self.listen().await?;
        let channels = self.serve(&[source.clone()])?;
        let mut options = RelayServiceOptions::new()
            .alias("static_forwarding_service")
            .prefix("forward_to_");
        for source in [&source, &channels] {
            options = options.service_as_consumer(source).relay_as_consumer(source);
        }
        RelayService::create(self.node.context(), "forwarding_service", options)?;
        println!("listening {at}");
        println!("identity {}", self.identifier);
        pending().await
    }

    /// Listen at a free port; where, and what its connections are as sources of messages.
    async fn listen(&self) -> Result<(String, FlowControlId)> {
        let listener = self.tcp.listen("127.0.0.1:0", TcpListenerOptions::new()).await?;
        Ok((listener.socket_string(), listener.flow_control_id().clone()))
    }

    async fn connect(&self, node: &str) -> Result<TcpConnection> {
        self.tcp.connect(node, TcpConnectionOptions::new()).await
    }

    /// The way to the workers of the peer at a connection, or behind a relay there: plain, or through a channel.
    async fn way(&self, connection: &TcpConnection) -> Result<(Route, Option<Address>)> {
        let mut way: Route = connection.sender_address().clone().into();
        if let Some(hop) = &self.options.via {
            way = way + hop.as_str();
        }
        if self.options.plain {
            return Ok((way, None));
        }
        let channel = self
            .node
            .create_secure_channel(&self.identifier, way + "listener", self.channel_options()?)
            .await?;
        println!("established");
        let encryptor = channel.encryptor_address().clone();
        Ok((encryptor.clone().into(), Some(encryptor)))
    }

    fn channel_options(&self) -> Result<SecureChannelOptions> {
        let mut options = SecureChannelOptions::new().with_timeout(self.options.timeout);
        if let Some(trusted) = &self.options.trust {
            options = options.with_trust_policy(TrustIdentifierPolicy::new(trusted.clone()));
        }
        if let Some(authority) = &self.authority {
            options = options.with_authority(authority.clone());
        }
        if let Some(credential) = &self.credential {
            options = options.with_credential(credential.clone())?;
        }
        Ok(options)
    }

    /// Start the echoer and the channel listener for messages from these sources; what the channels are as a source.
    fn serve(&self, sources: &[FlowControlId]) -> Result<FlowControlId> {
        let mut options = SecureChannelListenerOptions::new();
        if let Some(trusted) = &self.options.trust {
            options = options.with_trust_policy(TrustIdentifierPolicy::new(trusted.clone()));
        }
        if let Some(authority) = &self.authority {
            options = options.with_authority(authority.clone());
        }
        if let Some(credential) = &self.credential {
            options = options.with_credential(credential.clone())?;
        }
        let channels = options.spawner_flow_control_id();
        for source in sources {
            options = options.as_consumer(source);
        }
        let echoer = Address::from_string("echoer");
        for source in sources.iter().chain([&channels]) {
            self.node.flow_controls().add_consumer(&echoer, source);
        }
        match &self.authority {
            Some(authority) => self.node.start_worker_with_access_control(
                echoer,
                Echoer,
                CredentialAccessControl::new(
                    &self.options.require,
                    authority.clone(),
                    self.node.identities_attributes(),
                ),
                AllowAll,
            )?,
            None => self.node.start_worker(echoer, Echoer)?,
        }
        self.node
            .create_secure_channel_listener(&self.identifier, "listener", options)?;
        Ok(channels)
    }

    fn open_outlet(&self, target: &str, sources: &[FlowControlId]) -> Result<()> {
        let mut options = TcpOutletOptions::new();
        for source in sources {
            options = options.as_consumer(source);
        }
        self.tcp
            .create_outlet("outlet", HostnamePort::try_from(target.to_string())?, options)
    }
}

/// The name and the value in NAME=VALUE.
fn attribute(text: &str) -> result::Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text} is not NAME=VALUE"))?;
    Ok((name.to_string(), value.to_string()))
}

/// Sends every text back, and says how long it was.
struct Echoer;

#[ockam::worker]
impl Worker for Echoer {
    type Context = Context;
    type Message = String;

    async fn handle_message(&mut self, ctx: &mut Context, message: Routed<String>) -> Result<()> {
        let way_back = message.return_route().clone();
        let text = message.into_body()?;
        println!("received {}", text.len());
        ctx.send(way_back, text).await
    }
}

/// The n-th text: empty, short, long and as long as a classic peer can send too, in turn, and two that are not ASCII.
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
