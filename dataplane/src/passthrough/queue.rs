//! Commands in flight without a thread each: the asynchronous interface of `/dev/sgN`, where
//! `write` starts a command and `read` takes the result of one that ended (`scsi/sg.h`).

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::node::Completion;
use super::sg::{SgIoHdr, MAX_SENSE};
use super::transfer::Piece;
use crate::event::Event;

/// SG_MAX_QUEUE: commands that one descriptor takes.
const PER_DESCRIPTOR: usize = 16;
/// What epoll says of `Shared::wake`; of descriptors it says their numbers.
const WAKE: u64 = u64::MAX;
/// More come with the next call.
const EVENTS: usize = 16;

pub type Ended = Box<dyn FnOnce(Piece, io::Result<Completion>) + Send>;

struct Flight {
    piece: Piece,
    sense: Box<[u8; MAX_SENSE]>,
    ended: Ended,
    descriptor: usize,
}

struct Descriptor {
    fd: OwnedFd,
    in_flight: usize,
    /// The device is gone: the kernel takes no more, but may still end what it has.
    dead: bool,
}

#[derive(Default)]
struct State {
    descriptors: Vec<Descriptor>,
    flights: HashMap<usize, Flight>,
    waiting: VecDeque<(Piece, Ended)>,
    last_id: usize,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Event,
    epoll: Epoll,
}

/// Several descriptors of one node, and the thread that waits for all of them.
pub struct SgQueue(Arc<Shared>);

impl SgQueue {
    /// For `depth` commands. `fd` is a descriptor of the node.
    pub fn new(fd: &OwnedFd, depth: usize) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let descriptors: Vec<_> = (0..depth.div_ceil(PER_DESCRIPTOR))
            .map(|_| {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path)?;
                Ok(Descriptor {
                    fd: file.into(),
                    in_flight: 0,
                    dead: false,
                })
            })
            .collect::<io::Result<_>>()?;
        let (epoll, wake) = (Epoll::new()?, Event::new()?);
        let woken = EpollEvent::new(EventSet::IN, WAKE);
        epoll.ctl(ControlOperation::Add, wake.as_fd().as_raw_fd(), woken)?;
        for (number, one) in (0..).zip(&descriptors) {
            // Once for each end of a command: of a device that is gone there is always something
            // to report.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(events, number);
            epoll.ctl(ControlOperation::Add, one.fd.as_raw_fd(), event)?;
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                descriptors,
                ..State::default()
            }),
            wake,
            epoll,
        });
        let reader = shared.clone();
        std::thread::Builder::new()
            .name("vscsi-sg".into())
            .spawn(move || reader.serve())?;
        Ok(Self(shared))
    }

    /// Starts a piece, or keeps it until there is room. `ended` is called on any thread, this one
    /// too where the host does not take it.
    pub fn submit(&self, piece: Piece, ended: Ended) {
        let refused = self.0.lock().launch(piece, ended);
        if let Some((piece, ended, error)) = refused {
            ended(piece, Err(error));
        }
    }
}

impl Drop for SgQueue {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.signal();
    }
}

impl State {
    fn launch(&mut self, piece: Piece, ended: Ended) -> Option<(Piece, Ended, io::Error)> {
        let mut alive = self.descriptors.iter_mut().enumerate();
        let Some((descriptor, free)) =
            alive.find(|(_, one)| !one.dead && one.in_flight < PER_DESCRIPTOR)
        else {
            if self.descriptors.iter().all(|one| one.dead) {
                return Some((piece, ended, gone()));
            }
            self.waiting.push_back((piece, ended));
            return None;
        };
        let mut sense = Box::new([0; MAX_SENSE]);
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let header = match SgIoHdr::new(&piece.call(), sense.as_mut(), id) {
            Ok(header) => header,
            Err(error) => return Some((piece, ended, error)),
        };
        let size = std::mem::size_of::<SgIoHdr>();
        // SAFETY: the header is a plain structure; what it points to stays with the flight.
        let written = unsafe { libc::write(free.fd.as_raw_fd(), (&raw const header).cast(), size) };
        if written != size as isize {
            return Some((piece, ended, io::Error::last_os_error()));
        }
        free.in_flight += 1;
        let flight = Flight {
            piece,
            sense,
            ended,
            descriptor,
        };
        self.flights.insert(id, flight);
        None
    }

    /// After an end there is room. What the host does not take leaves it to the next one.
    fn launch_waiting(&mut self) -> Vec<(Piece, Ended, io::Error)> {
        let mut refused = Vec::new();
        while let Some((piece, ended)) = self.waiting.pop_front() {
            match self.launch(piece, ended) {
                Some(other) => refused.push(other),
                None => break,
            }
        }
        refused
    }

    fn land(&mut self, id: usize) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        self.descriptors[flight.descriptor].in_flight -= 1;
        Some(flight)
    }

    /// sg copies data, so that nothing of a flight is in use once its device is gone.
    fn lose(&mut self, descriptor: usize) -> Vec<Flight> {
        self.descriptors[descriptor].dead = true;
        let ids: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.descriptor == descriptor)
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().filter_map(|id| self.land(id)).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut events = [EpollEvent::default(); EVENTS];
        while !self.is_over() {
            // EINTR is a wake-up like any other.
            let count = self.epoll.wait(-1, &mut events).unwrap_or(0);
            for event in &events[..count] {
                match event.data() {
                    WAKE => self.wake.clear(),
                    number => self.take(number as usize, event.event_set()),
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        let state = self.lock();
        state.closed && state.flights.is_empty() && state.waiting.is_empty()
    }

    /// Takes all that has ended on a descriptor.
    fn take(&self, number: usize, events: EventSet) {
        let fd = {
            let one = &mut self.lock().descriptors[number];
            one.dead |= events.contains(EventSet::HANG_UP);
            one.fd.as_raw_fd()
        };
        while self.lock().descriptors[number].in_flight > 0 {
            let mut header = SgIoHdr::empty();
            let size = std::mem::size_of::<SgIoHdr>();
            // SAFETY: a plain structure of that size; the data go where the flight said.
            let got = unsafe { libc::read(fd, (&raw mut header).cast(), size) };
            if got == size as isize {
                self.landed(&header);
                continue;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return,
                io::ErrorKind::Interrupted => continue,
                _ => return self.lost(number),
            }
        }
    }

    fn landed(&self, header: &SgIoHdr) {
        let (flight, refused) = {
            let mut state = self.lock();
            let flight = state.land(header.id());
            (flight, state.launch_waiting())
        };
        for (piece, ended, error) in refused {
            ended(piece, Err(error));
        }
        if let Some(flight) = flight {
            let completion = header.completion(&flight.sense[..]);
            (flight.ended)(flight.piece, Ok(completion));
        }
    }

    fn lost(&self, number: usize) {
        let (flights, waiting) = {
            let mut state = self.lock();
            let flights = state.lose(number);
            let waiting = match state.descriptors.iter().all(|one| one.dead) {
                true => std::mem::take(&mut state.waiting),
                false => VecDeque::new(),
            };
            (flights, waiting)
        };
        for flight in flights {
            (flight.ended)(flight.piece, Err(gone()));
        }
        for (piece, ended) in waiting {
            ended(piece, Err(gone()));
        }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}
