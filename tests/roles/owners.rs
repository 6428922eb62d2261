//! Every public owner of threads: started and then dropped, or stopped, it ends soon and leaves no thread.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use phalanx::app::local::{LocalConfig, LocalNetwork, ThreadBackend};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::StopReport;
use phalanx::base::thread::{Group, Kick, spawn};
use phalanx::base::timer::Timer;
use phalanx::executor::RunnerKind;
use phalanx::facilitator::{Facilitator, FacilitatorConfig};
use phalanx::identity::KeyPair;
use phalanx::link::server::{Server, ServerConfig};
use phalanx::link::{Link, LinkConfig, LinkEvent, Text};
use phalanx::miner::{Miner, MinerConfig};
use phalanx::net::http::{HttpLimits, HttpRequest, HttpResponse, HttpServer};
use phalanx::ops::status::Board;
use phalanx::pool::{Connector, Pool, PoolConfig, Until};
use phalanx::protocol::ExecutorClass;
use phalanx::tasks::{TaskConfig, TaskManager};
use phalanx::transport::idle::IdleWatch;
use phalanx::validator::batch::{BatchConfig, RunningBatch};
use phalanx::validator::ledger::{self, Ledger, StoreThread};
use phalanx::validator::manifests::{Fetcher, ManifestBoard, MinerDialer, Refresh};
use phalanx::validator::miner_client::MinerClient;
use phalanx::validator::miners::{MinerFeed, MinerFile};
use phalanx::validator::{
    ClientConfig, FacilitatorClient, KeptConnections, LedgerLimits, MinerAddress, RetryPolicies, RunningClient,
    Validator, ValidatorConfig,
};

use crate::testkit::batch_miners::maker_and_judge;
use crate::testkit::roles::World;
use crate::testkit::scripted_facilitator::key;
use crate::testkit::wait::{LONG, far};

/// A drop has so long, and a stop here, too.
const BUDGET: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Drop,
    Stop,
}

/// What ends an owner that was just started; a stop gives its report.
type End = Box<dyn FnOnce(Way) -> Option<StopReport> + Send>;

/// An owner's name, and how it is started.
type Row = (&'static str, fn(&Place) -> End);

/// The memory network and the timer, and a folder for what is on disk.
struct Place {
    world: World,
    folder: tempfile::TempDir,
}

impl Place {
    fn dialer(&self) -> Arc<dyn phalanx::transport::Dialer> {
        Arc::new(self.world.net.dialer())
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

/// The rows of a table.
macro_rules! owners {
    ($($owner:ident: $start:expr;)*) => {
        [$((stringify!($owner), {
            fn begin(place: &Place) -> End {
                let start: fn(&Place) -> $owner = $start;
                let owner = start(place);
                Box::new(move |way| match way {
                    Way::Drop => {
                        drop(owner);
                        None
                    }
                    Way::Stop => Some(owner.stop(BUDGET)),
                })
            }
            begin as fn(&Place) -> End
        })),*]
    };
}

struct Numbers;

impl Connector for Numbers {
    type Key = u32;
    type Connection = u32;
    type Error = String;

    fn connect(&self, key: &u32, _: Until<'_>) -> Result<u32, String> {
        Ok(*key)
    }

    fn validate(&self, _: &mut u32, _: Until<'_>) -> Result<(), String> {
        Ok(())
    }
}

type NumberPool = Pool<Numbers>;

/// One on whose address nobody listens.
fn nobody() -> MinerAddress {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    MinerAddress {
        hotkey: key("//Miner").public(),
        address: address.ip().to_string(),
        port: address.port(),
        trusted: false,
        tls: false,
    }
}

fn http() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn thread_backend(place: &Place) -> Arc<ThreadBackend> {
    Arc::new(ThreadBackend::new(RunnerKind::Process, place.world.timer()))
}

fn of_roles() -> Vec<Row> {
    owners! {
        Timer: |_| Timer::start();
        TaskManager: |_| TaskManager::start(TaskConfig::new("t-owner")).unwrap();
        NumberPool: |_| Pool::start(PoolConfig::default(), Numbers);
        HttpServer: |_| {
            let handler = Arc::new(|_: &HttpRequest| HttpResponse::text(200, ""));
            HttpServer::start("t", http(), handler, HttpLimits::default(), &Board::new()).unwrap()
        };
        Server: |place| {
            let listener = Box::new(place.world.net.listener("server"));
            Server::start(ServerConfig::new("t"), listener, place.world.timer(), Arc::new(|_| Ok(())), Arc::new(|_| {}))
        };
        Link: |place| {
            let (_, idle) = Link::new(LinkConfig::new("t-link", "ws://nobody/"), place.dialer(), place.world.timer());
            idle.start(None, Text::<_, ()>::Message, |_: LinkEvent<_, ()>| {})
        };
        IdleWatch: |place| IdleWatch::start("t-idle", place.world.timer()).unwrap();
        StoreThread: |place| {
            let link = LinkConfig::new("t-link", "ws://nobody/");
            let (handle, _idle) = Link::new(link, place.dialer(), place.world.timer());
            let ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
            let folder = place.folder("store");
            ledger::open(Some(&folder), ledger, handle, place.world.timer(), &Board::new(), |_| {}).unwrap().1
        };
        RunningClient: |place| {
            let config = ClientConfig {
                dialer: place.dialer(),
                ..ClientConfig::new("ws://nobody/ws/v0/", key("//Validator"))
            };
            FacilitatorClient::new(config).unwrap().start(drop).unwrap()
        };
        MinerClient: |place| MinerClient::start(&nobody(), &key("//Validator"), place.dialer(), place.world.timer(), 1);
        KeptConnections: |place| {
            let (dialer, timer) = (place.dialer(), place.world.timer());
            KeptConnections::start(MinerDialer { key: key("//Validator"), dialer, timer }, 4, &Default::default())
        };
        Refresh: |_| {
            let fetcher = Fetcher::new(1, |_, _, _| unreachable!("there is no miner"));
            Refresh::start(fetcher, LONG, &Board::new(), ManifestBoard::default(), Vec::new, |_| {})
        };
        MinerFeed: |place| {
            let file = MinerFile::new(place.folder("miners.json"));
            MinerFeed::start(Box::new(file), 0, Shutdown::new(), |_| {}, &Default::default())
        };
        RunningBatch: |place| {
            let config = BatchConfig::new(key("//Validator"), 1);
            let work = maker_and_judge(1);
            RunningBatch::start(config, vec![nobody()], work, place.dialer(), place.world.timer()).unwrap()
        };
        Facilitator: |place| {
            let config = FacilitatorConfig {
                validators: vec![key("//Validator").public()],
                users: vec![key("//User").public()],
                ..FacilitatorConfig::new(place.folder("facilitator"))
            };
            let listener = Box::new(place.world.net.listener("facilitator"));
            Facilitator::start(config, listener, http(), place.world.timer()).unwrap()
        };
        Miner: |place| {
            let config = MinerConfig {
                validators: vec![key("//Validator").public()],
                executors: vec![(ExecutorClass::AlwaysOnTest, 1)],
                ..MinerConfig::new(KeyPair::generate().0, place.folder("miner"), thread_backend(place))
            };
            Miner::start(config, Box::new(place.world.net.listener("miner")), place.world.timer()).unwrap()
        };
        Validator: |place| {
            let config = ValidatorConfig {
                trusted_signers: vec![key("//User").public()],
                ..ValidatorConfig::new("ws://nobody/ws/v0/", key("//Validator"), vec![nobody()])
            };
            Validator::start(config, place.dialer(), place.world.timer()).unwrap()
        };
        LocalNetwork: |place| {
            let config = LocalConfig {
                state_dir: place.folder("network"),
                executors: 1,
                backend: thread_backend(place),
                drain_time: LONG,
            };
            LocalNetwork::start(config, &place.world.timer()).unwrap()
        };
    }
    .into()
}

/// Those that need a Redis, which is away.
#[cfg(feature = "celery")]
fn of_redis() -> Vec<Row> {
    use phalanx::celery::worker::{CeleryWorker, Registry, WorkerConfig};
    use phalanx::celery::{Beat, CeleryClient, CeleryConfig};
    use phalanx::redis::messaging::RedisMessaging;
    use phalanx::redis::{Commander, RedisConfig, Subscriber};
    use phalanx::validator::remote::{JobWorker, JobWorkerConfig};

    fn redis() -> RedisConfig {
        RedisConfig::parse("redis://127.0.0.1:1/0").unwrap()
    }

    /// A responder with the messaging that it belongs to.
    struct Responder(phalanx::redis::messaging::Responder, RedisMessaging);

    impl Responder {
        fn stop(self, budget: Duration) -> StopReport {
            let Self(responder, messaging) = self;
            let report = responder.stop(budget);
            drop(messaging);
            report
        }
    }

    owners! {
        Commander: |_| Commander::start("t-cmd", redis(), &Board::new()).unwrap();
        Subscriber: |_| Subscriber::start("t-sub", redis(), &Board::new()).unwrap();
        RedisMessaging: |_| RedisMessaging::start(redis(), &Board::new()).unwrap();
        Responder: |_| {
            let messaging = RedisMessaging::start(redis(), &Board::new()).unwrap();
            Responder(messaging.handle().respond("t", 1, |_| Ok(Vec::new())), messaging)
        };
        CeleryClient: |_| CeleryClient::start(CeleryConfig::new(redis()), &Board::new()).unwrap();
        Beat: |_| {
            let client = CeleryClient::start(CeleryConfig::new(redis()), &Board::new()).unwrap();
            Beat::start(client.handle(), Vec::new(), &Board::new()).unwrap()
        };
        CeleryWorker: |_| CeleryWorker::start(WorkerConfig::new(redis()), Registry::new(), &Board::new()).unwrap();
        JobWorker: |place| {
            let mut config = JobWorkerConfig::new(redis(), key("//Validator"), vec![nobody()]);
            config.trusted_signers = vec![key("//User").public()];
            JobWorker::start(config, place.dialer(), place.world.timer(), &Board::new()).unwrap()
        };
    }
    .into()
}

#[cfg(not(feature = "celery"))]
fn of_redis() -> Vec<Row> {
    Vec::new()
}

fn owners() -> Vec<Row> {
    of_roles().into_iter().chain(of_redis()).collect()
}

#[test]
fn an_owner_without_work_that_is_dropped_or_stopped_ends_at_once_and_leaves_no_thread() {
    for way in [Way::Drop, Way::Stop] {
        for (name, begin) in owners() {
            let place = Place { world: World::new(), folder: tempfile::tempdir().unwrap() };
            let group = Group::enter();
            let end = begin(&place);
            let since = Instant::now();
            let (report, ended) = bounded(1);
            // On a thread of its own, so that one that does not end is named.
            let ending = spawn("t-end", Kick::dropped("nothing: a test for it"), move || report.send(end(way)));
            let ended = ended.recv_timeout(LONG).unwrap_or_else(|_| panic!("{name}: the {way:?} does not end"));
            let took = since.elapsed();
            assert!(took < BUDGET, "{name}: the {way:?} took {took:?}");
            assert!(ended.is_none_or(|report| report.is_clean() && !report.steps.is_empty()), "{name}");
            ending.join_by(far()).unwrap().unwrap();
            let left: Vec<_> = group.live().into_iter().map(|thread| thread.name).collect();
            assert!(left.is_empty(), "{name}: the {way:?} left {left:?}");
        }
    }
}

#[test]
fn the_table_of_the_owners_names_all_that_are_tested() {
    let document = include_str!("../../docs/embedding.md");
    let table = document.lines().skip_while(|line| !line.starts_with("| owner |")).skip(2);
    let named: BTreeSet<&str> = table
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect();
    let tested: BTreeSet<&str> = owners().into_iter().map(|(name, _)| name.trim_start_matches("Number")).collect();
    assert_eq!(named, tested);
}
