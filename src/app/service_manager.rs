//! The service manager that has started this process, as systemd: it is told when a role is ready, reads its settings
//! again, and stops, and what it does. If it wants signs of life, it gets them for as long as all loops of the role
//! make progress: one that is idle answers when it is asked, and one that hangs is named in the log.
//!
//! Owner of the thread `alive`: `Watched`. Blocks in: a channel, until the next sign is due. Kick: the drop of
//! `stop`. Ends: with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::signs::{Look, Signs};
use super::thread_list;
use crate::base::lock::lock;
use crate::base::shutdown::Never;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::ops::health::{Health, Pulse};
use crate::ops::status::watch_timer;
use crate::ops::throttle::Throttle;
use crate::proc::notify::{Notice, Notifier};

/// Signs of life in the time in which one is due: two may get lost, or be late on a busy machine.
const SIGNS: u32 = 3;

/// Brings the health of a role up to date. It must not block.
type Refresh = Box<dyn Fn(&Health) + Send + Sync>;

/// Clones are the same; without a service manager nothing is told to anybody.
#[derive(Clone, Default)]
pub struct ServiceManager(Arc<Told>);

#[derive(Default)]
struct Told {
    notifier: Option<Notifier>,
    role: Mutex<Option<Role>>,
    is_stopping: AtomicBool,
    trouble: Mutex<Throttle>,
}

struct Role {
    health: Health,
    refresh: Refresh,
    _timer: Pulse,
}

impl std::fmt::Debug for ServiceManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServiceManager").field(&self.0.notifier).finish()
    }
}

/// The thread that gives signs of life, if there is one.
#[derive(Debug)]
#[must_use = "signs of life are given only while the value lives"]
pub(super) struct Watched {
    stop: Option<Sender<Never>>,
    thread: Option<Thread<()>>,
}

impl ServiceManager {
    /// The one that the environment names. A name that cannot be right is warned of: the process is of use without.
    pub(super) fn of_env() -> Self {
        match Notifier::of_env(|name| std::env::var_os(name)) {
            Ok(notifier) => Self(Arc::new(Told { notifier, ..Told::default() })),
            Err(problem) => {
                log::warn!("the service manager is told nothing: {problem}");
                Self::default()
            }
        }
    }

    /// The role whose loops are watched, and its timer; `refresh` brings its health up to date and must not block.
    pub fn watch(&self, health: &Health, timer: &TimerHandle, refresh: impl Fn(&Health) + Send + Sync + 'static) {
        if self.0.notifier.is_some() {
            let role = Role { health: health.clone(), refresh: Box::new(refresh), _timer: watch_timer(health, timer) };
            *lock(&self.0.role) = Some(role);
        }
    }

    /// The role has started; from now on it gives signs of life, if they are wanted.
    pub(super) fn ready(&self) -> Watched {
        self.tell(&[Notice::Ready, Notice::Status("running")]);
        let Some(period) = self.0.notifier.as_ref().and_then(Notifier::watchdog) else {
            return Watched { stop: None, thread: None };
        };
        let (stop, stopped) = bounded::<Never>(0);
        let (told, period) = (self.clone(), period / SIGNS);
        let thread = spawn("alive", Kick::dropped("stop"), move || {
            let mut signs = Signs::default();
            loop {
                told.sign(&mut signs);
                let next = Instant::now() + period;
                let _waiting = waiting("the next sign of life", Some(next));
                if stopped.recv_deadline(next).is_err_and(|error| error.is_disconnected()) {
                    return;
                }
            }
        });
        Watched { stop: Some(stop), thread: Some(thread) }
    }

    /// Settings are read again while `reload` runs.
    pub(super) fn reloading(&self, reload: impl FnOnce()) {
        self.tell(&[Notice::Reloading]);
        reload();
        self.tell(&[Notice::Ready]);
    }

    /// The role stops, which takes up to `limit`.
    pub(super) fn stopping(&self, limit: Duration) {
        self.0.is_stopping.store(true, Ordering::Relaxed);
        self.tell(&[Notice::Stopping, Notice::Extend(limit), Notice::Status("stopping")]);
    }

    /// The step of the stop that begins.
    pub(super) fn step(&self, name: &str) {
        self.tell(&[Notice::Status(&format!("stopping: {name}"))]);
    }

    fn tell(&self, notices: &[Notice<'_>]) {
        let Some(notifier) = &self.0.notifier else { return };
        if let Err(error) = notifier.tell(notices) {
            lock(&self.0.trouble).warn(Instant::now(), &format_args!("the service manager is not told: {error}"));
        }
    }

    /// Looks at the loops and asks them for the next look.
    fn sign(&self, signs: &mut Signs) {
        let is_stopping = self.0.is_stopping.load(Ordering::Relaxed);
        let parts = lock(&self.0.role).as_ref().map_or_else(Vec::new, |role| {
            (role.refresh)(&role.health);
            let now = Instant::now();
            let parts = role.health.parts(now);
            // Those who do not answer are seen by a later look.
            drop(role.health.probe(now));
            parts
        });
        let Look { is_alive, status, newly_stuck, has_recovered } = signs.look(&parts, is_stopping);
        if !newly_stuck.is_empty() {
            log::error!("{}; until that is over the service manager gets no sign of life", newly_stuck.join("; "));
            thread_list::say();
        }
        if has_recovered {
            log::warn!("all loops make progress again");
        }
        let notices = [is_alive.then_some(Notice::Alive), status.as_deref().map(Notice::Status)];
        let notices: Vec<_> = notices.into_iter().flatten().collect();
        if !notices.is_empty() {
            self.tell(&notices);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take());
    }
}
