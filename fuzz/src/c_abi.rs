//! The C ABI with arbitrary arguments: the bytes are interpreted as a list of calls, each with its
//! arguments. The caller's obligations in the header are kept: handles are NULL or alive, and
//! memory is as long as the call says (and no longer, so that AddressSanitizer detects accesses
//! beyond it). One target makes calls from one thread, the other from two threads that share
//! handles, with forks in between.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CString, c_char, c_void};
use std::mem::{offset_of, replace};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use moxin_vlm::ffi::*;

/// The maximum number of calls per input, and of slow calls among them.
const CALLS: usize = 48;
const LONG_CALLS: usize = 2;
const SLOTS: usize = 3;

/// The maximum number of forks per input, and of calls in a child.
const FORKS: usize = 1;
const CHILD_CALLS: usize = 4;

/// Calls that compute nothing never take longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the calls that `bytes` encode.
pub fn c_abi(bytes: &[u8]) {
    let mut caller = Caller::new();
    caller.calls(bytes);
    caller.leave();
    assert_eq!(handles(), 1, "the lasting model alone");
}

/// Makes calls from two threads that share a handle of each kind and have others of their own.
pub fn c_calls(bytes: &[u8]) {
    let (first, bytes) = bytes.split_at(bytes.len().min(1));
    let (ours, theirs) = bytes.split_at(
        first
            .first()
            .map_or(0, |part| bytes.len() * usize::from(*part) / 256),
    );
    let shared = Caller::new();
    let mut callers = [Caller::sharing(&shared), Caller::sharing(&shared)];
    let [one, other] = &mut callers;
    thread::scope(|scope| {
        let thread = scope.spawn(|| other.calls(theirs));
        one.calls(ours);
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    });
    callers.into_iter().for_each(Caller::leave);
    shared.leave();
    assert_eq!(handles(), 1, "the lasting model alone");
}

/// Memory from C: exactly so many bytes, at an address aligned for any struct.
struct Block {
    start: *mut u8,
    size: usize,
}

impl Block {
    fn new(size: usize) -> Block {
        // SAFETY: the size is not 0.
        let start = unsafe { alloc_zeroed(Block::layout(size)) };
        assert!(!start.is_null());
        Block { start, size }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size.max(1), align_of::<usize>()).expect("a small size")
    }

    fn copy(bytes: &[u8]) -> Block {
        let mut block = Block::new(bytes.len());
        block.bytes().copy_from_slice(bytes);
        block
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the block is this long, and borrowed for as long as the slice.
        unsafe { slice::from_raw_parts_mut(self.start, self.size) }
    }

    /// Writes a value at an offset, or zeros up to the end of the block if the value does not fit:
    /// half a pointer is not a pointer.
    fn put<T: Copy>(&mut self, offset: usize, value: T) {
        if offset + size_of::<T>() <= self.size {
            // SAFETY: the value fits.
            unsafe { self.start.add(offset).cast::<T>().write_unaligned(value) };
        } else if offset < self.size {
            self.bytes()[offset..].fill(0);
        }
    }

    fn pointer<T>(&self) -> *mut T {
        self.start.cast()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, with this layout.
        unsafe { dealloc(self.start, Block::layout(self.size)) };
    }
}

/// Returns the struct, or NULL if there is none.
fn pointer<T>(block: &Option<Block>) -> *mut T {
    block.as_ref().map_or(null_mut(), Block::pointer)
}

/// The events of a stream, or the messages of a log.
#[derive(Default)]
struct Received {
    finished: AtomicU32,
    destroyed: AtomicU32,
}

unsafe extern "C" fn on_event(user_data: *mut c_void, event: *const moxin_event) -> bool {
    // SAFETY: the user data given to generate_start, and an event that lives during the call.
    let (received, event) = unsafe { (&*user_data.cast::<Received>(), &*event) };
    assert_eq!(
        (
            received.finished.load(Ordering::SeqCst),
            received.destroyed.load(Ordering::SeqCst)
        ),
        (0, 0),
        "an event after the last"
    );
    if event.kind == moxin_event_kind::Finished {
        received.finished.store(1, Ordering::SeqCst);
    }
    event.token_id % 7 != 3
}

unsafe extern "C" fn on_log(
    user_data: *mut c_void,
    level: moxin_log_level,
    target: moxin_str,
    message: moxin_str,
) {
    // SAFETY: the user data given to set_log.
    let received = unsafe { &*user_data.cast::<Received>() };
    assert_eq!(
        received.destroyed.load(Ordering::SeqCst),
        0,
        "a message after the last"
    );
    assert!(level <= MOXIN_LOG_LEVEL_TRACE && !target.data.is_null() && !message.data.is_null());
}

unsafe extern "C" fn destroy(user_data: *mut c_void) {
    // SAFETY: the user data given with it.
    let received = unsafe { &*user_data.cast::<Received>() };
    assert_eq!(
        received.destroyed.fetch_add(1, Ordering::SeqCst),
        0,
        "destroyed twice"
    );
}

unsafe extern "C" fn on_progress(
    user_data: *mut c_void,
    _stage: moxin_stage,
    fraction: f32,
) -> bool {
    assert!(user_data.is_null() && (0.0..=1.0).contains(&fraction));
    fraction < 0.9
}

fn in_repository(name: &str) -> CString {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    CString::new(path.into_os_string().into_encoded_bytes()).expect("no NUL in a path")
}

/// The small model, loaded once and never freed.
fn model() -> *mut moxin_model {
    static MODEL: OnceLock<usize> = OnceLock::new();
    let load = || {
        let mut model = null_mut();
        // SAFETY: a path, defaults, and a place.
        let status = unsafe {
            moxin_model_load(
                in_repository("models/tiny").as_ptr(),
                null(),
                null(),
                &mut model,
                null_mut(),
            )
        };
        assert_eq!(status, moxin_status::Ok);
        model as usize
    };
    *MODEL.get_or_init(load) as *mut moxin_model
}

/// A C program's variables. The first `lasting` slots of each kind belong to someone else.
struct Caller {
    lasting: usize,
    models: [*mut moxin_model; SLOTS],
    images: [*mut moxin_image; SLOTS],
    embeddings: [*mut moxin_embedding; SLOTS],
    sessions: [*mut moxin_session; SLOTS],
    cancels: [*mut moxin_cancel; SLOTS],
    /// Each stream, with whether it started.
    streams: Vec<(Arc<Received>, bool)>,
    logs: Vec<Arc<Received>>,
    long_calls: usize,
    forks: usize,
    /// Whether this is a forked child, in which nothing may be computed.
    forked: bool,
}

// SAFETY: handles may be used on any thread.
unsafe impl Send for Caller {}

/// Returns one of the slots, or NULL.
fn any<T>(slots: &[*mut T; SLOTS], input: &mut Unstructured) -> Result<*mut T> {
    Ok(slots
        .get(input.int_in_range(0..=SLOTS)?)
        .copied()
        .unwrap_or(null_mut()))
}

/// Returns a number that is small, or at the end of its range, or arbitrary.
fn number(input: &mut Unstructured) -> Result<u64> {
    const ENDS: [u64; 8] = [
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        u64::MAX / 2,
        u32::MAX as u64,
        1 << 32,
        65_535,
        65_536,
    ];
    Ok(match input.int_in_range(0..=3)? {
        0 | 1 => input.int_in_range(0..=16)?,
        2 => *input.choose(&ENDS)?,
        _ => input.arbitrary()?,
    })
}

fn text<'a>(input: &mut Unstructured<'a>) -> Result<&'a [u8]> {
    let length = input.int_in_range(0..=32)?;
    input.bytes(length.min(input.len()))
}

/// Returns a struct with the `struct_size` of some version, or of none.
fn sized<T>(input: &mut Unstructured) -> Result<Option<Block>> {
    let ours = size_of::<T>();
    let size = match input.int_in_range(0..=7)? {
        0 => return Ok(None),
        1 => input.int_in_range(0..=ours + 16)?,
        2 => ours + input.int_in_range(0..=4100)?,
        3 => number(input)? as usize,
        _ => ours,
    };
    // The library refuses a struct by its size if it is more than 4096 bytes longer than the
    // version it knows.
    let mut block = Block::new(if size <= ours + 4096 {
        size.max(size_of::<usize>())
    } else {
        size_of::<usize>()
    });
    block.put(0, size);
    Ok(Some(block))
}

/// Returns parameters: the defaults, with some bytes changed.
fn params<T>(
    input: &mut Unstructured,
    init: unsafe extern "C" fn(*mut T, usize),
) -> Result<Option<Block>> {
    let Some(mut block) = sized::<T>(input)? else {
        return Ok(None);
    };
    let size = block.size;
    // SAFETY: the block is this long, and starts with a size.
    unsafe {
        let stated = block.pointer::<usize>().read();
        init(block.pointer(), size);
        block.put(0, stated);
    }
    if size > size_of::<usize>() {
        for _ in 0..input.int_in_range(0..=3)? {
            let at = input.int_in_range(size_of::<usize>()..=size - 1)?;
            if input.arbitrary()? {
                block.put(at & !3, number(input)? as u32);
            } else {
                block.bytes()[at] = input.arbitrary()?;
            }
        }
    }
    Ok(Some(block))
}

impl Caller {
    /// Starts with a model, a picture and a session.
    fn new() -> Caller {
        let mut caller = Caller::empty();
        // SAFETY: a pixel, a model, and places.
        unsafe {
            let (pixel, gray) = ([200u8], MOXIN_PIXEL_FORMAT_GRAY8);
            moxin_image_from_pixels(
                pixel.as_ptr().cast(),
                1,
                1,
                1,
                gray,
                &mut caller.images[0],
                null_mut(),
            );
            moxin_session_new(model(), null(), &mut caller.sessions[0], null_mut());
        }
        caller
    }

    fn empty() -> Caller {
        Caller {
            lasting: 0,
            models: [model(), null_mut(), null_mut()],
            images: [null_mut(); SLOTS],
            embeddings: [null_mut(); SLOTS],
            sessions: [null_mut(); SLOTS],
            cancels: [null_mut(); SLOTS],
            streams: Vec::new(),
            logs: Vec::new(),
            long_calls: 0,
            forks: 0,
            forked: false,
        }
    }

    /// Shares the first handles of another, which outlives this one.
    fn sharing(other: &Caller) -> Caller {
        let mut caller = Caller {
            lasting: 1,
            ..Caller::empty()
        };
        (caller.images[0], caller.sessions[0], caller.cancels[0]) =
            (other.images[0], other.sessions[0], other.cancels[0]);
        caller
    }

    /// Makes the calls that the bytes encode.
    fn calls(&mut self, bytes: &[u8]) {
        let mut input = Unstructured::new(bytes);
        for _ in 0..CALLS {
            // The end of the input is the end of the calls.
            if input.is_empty() || self.call(&mut input).is_err() {
                break;
            }
        }
    }

    fn op(&self, input: &mut Unstructured) -> Result<Option<Block>> {
        let Some(mut block) = sized::<moxin_op>(input)? else {
            return Ok(None);
        };
        let progress: moxin_progress_fn = if input.arbitrary()? {
            Some(on_progress)
        } else {
            None
        };
        block.put(offset_of!(moxin_op, progress), progress);
        block.put(offset_of!(moxin_op, cancel), any(&self.cancels, input)?);
        block.put(offset_of!(moxin_op, timeout_ms), number(input)?);
        Ok(Some(block))
    }

    /// Returns whether another slow call is allowed.
    fn patience(&mut self) -> bool {
        self.long_calls += 1;
        self.long_calls <= LONG_CALLS
    }

    /// Makes one call.
    fn call(&mut self, input: &mut Unstructured) -> Result<()> {
        let slot = input.int_in_range(0..=SLOTS - 1)?;
        // Chooses a slot for a handle of its own.
        let own = slot.max(self.lasting);
        let last = if self.lasting > 0 && !self.forked {
            FORK
        } else {
            FORK - 1
        };
        let call = input.int_in_range(0..=last)?;
        let mut error: *mut moxin_error = null_mut();
        let place: *mut *mut moxin_error = if input.ratio(7, 8)? {
            &mut error
        } else {
            null_mut()
        };
        // SAFETY: handles are NULL or alive, memory is as long as stated, and every output pointer
        // is valid or NULL.
        let status = unsafe {
            match call {
                0 => {
                    let (params, bytes) = (
                        params(input, moxin_image_params_init)?,
                        Block::copy(text(input)?),
                    );
                    self.drop_image(own);
                    moxin_image_from_bytes(
                        bytes.pointer(),
                        bytes.size,
                        pointer(&params),
                        &mut self.images[own],
                        place,
                    )
                }
                1 => {
                    let (path, params) = (path(input)?, params(input, moxin_image_params_init)?);
                    self.drop_image(own);
                    moxin_image_from_file(
                        chars(&path),
                        pointer(&params),
                        &mut self.images[own],
                        place,
                    )
                }
                2 | 3 => self.image_from_pixels(own, place, input)?,
                4 => {
                    let (mut width, mut height) = (0, 0);
                    let width = if input.arbitrary()? {
                        &mut width
                    } else {
                        null_mut()
                    };
                    moxin_image_size(any(&self.images, input)?, width, &mut height, place)
                }
                5 => {
                    let (path, params, op) = (path(input)?, model_params(input)?, self.op(input)?);
                    // The first slot is the lasting model's.
                    let slot = slot.max(1);
                    if !self.patience() {
                        return Ok(());
                    }
                    moxin_model_free(replace(&mut self.models[slot], null_mut()));
                    moxin_model_load(
                        chars(&path),
                        params.pointer(),
                        pointer(&op),
                        &mut self.models[slot],
                        place,
                    )
                }
                6 => {
                    let (path, info) = (path(input)?, sized::<moxin_model_info>(input)?);
                    moxin_model_inspect(chars(&path), pointer(&info), place)
                }
                7 => {
                    let (path, model, session) =
                        (path(input)?, model_params(input)?, session_params(input)?);
                    let estimate = sized::<moxin_memory_estimate>(input)?;
                    moxin_model_estimate(
                        chars(&path),
                        model.pointer(),
                        session.pointer(),
                        pointer(&estimate),
                        place,
                    )
                }
                8 => {
                    let (model, info) =
                        (any(&self.models, input)?, sized::<moxin_model_info>(input)?);
                    moxin_model_info_get(model, pointer(&info), place)
                }
                9 => {
                    const KEYS: [&str; 4] = [
                        "model_type",
                        "text_config",
                        "image_sizes.1",
                        "text_config.rope_theta",
                    ];
                    let key = if input.arbitrary()? {
                        input.choose(&KEYS)?.as_bytes()
                    } else {
                        text(input)?
                    };
                    let key = CString::new(key).ok();
                    let mut value = moxin_str {
                        data: null(),
                        len: 0,
                    };
                    moxin_model_metadata(any(&self.models, input)?, chars(&key), &mut value, place)
                }
                10 => match slot {
                    0 => moxin_model_unload(null(), place),
                    _ => moxin_model_unload(self.models[slot], place),
                },
                11 => {
                    let (model, image, budget, op) = (
                        any(&self.models, input)?,
                        any(&self.images, input)?,
                        budget(input)?,
                        self.op(input)?,
                    );
                    if !self.patience() {
                        return Ok(());
                    }
                    moxin_embedding_free(replace(&mut self.embeddings[own], null_mut()));
                    moxin_model_encode_image(
                        model,
                        image,
                        pointer(&budget),
                        pointer(&op),
                        &mut self.embeddings[own],
                        place,
                    )
                }
                12 => {
                    let (embedding, info) = (
                        any(&self.embeddings, input)?,
                        sized::<moxin_embedding_info>(input)?,
                    );
                    moxin_embedding_info_get(embedding, pointer(&info), place)
                }
                13 => {
                    // The small model's pictures take 64 tokens of 192 values.
                    let room = if input.arbitrary()? {
                        64 * 192
                    } else {
                        input.int_in_range(0..=64 * 192)?
                    };
                    let values = Block::new(room * size_of::<f32>());
                    moxin_embedding_copy(
                        any(&self.embeddings, input)?,
                        values.pointer(),
                        room,
                        place,
                    )
                }
                15 => {
                    let params = session_params(input)?;
                    moxin_session_set_params(self.sessions[slot], params.pointer(), place)
                }
                14 => {
                    let (model, params) = (any(&self.models, input)?, session_params(input)?);
                    self.drop_session(own);
                    moxin_session_new(model, params.pointer(), &mut self.sessions[own], place)
                }
                16 | 17 => {
                    let (role, text) = (number(input)?.min(4) as u32, text(input)?);
                    match CString::new(text) {
                        Ok(text) if input.arbitrary()? => moxin_session_add_text(
                            self.sessions[slot],
                            role,
                            text.as_ptr(),
                            MOXIN_STRLEN,
                            place,
                        ),
                        _ => {
                            let text = Block::copy(text);
                            moxin_session_add_text(
                                self.sessions[slot],
                                role,
                                text.pointer(),
                                text.size,
                                place,
                            )
                        }
                    }
                }
                18 => {
                    let (image, budget) = (any(&self.images, input)?, budget(input)?);
                    moxin_session_add_image(self.sessions[slot], image, pointer(&budget), place)
                }
                19 => moxin_session_add_embedding(
                    self.sessions[slot],
                    any(&self.embeddings, input)?,
                    place,
                ),
                20 => {
                    let event = sized::<moxin_event>(input)?;
                    moxin_session_step(self.sessions[slot], pointer(&event), place)
                }
                21 => {
                    let op = self.op(input)?;
                    moxin_session_prefill(self.sessions[slot], pointer(&op), place)
                }
                22 => self.generate_start(slot, place, input)?,
                23 => {
                    let stats = sized::<moxin_stats>(input)?;
                    moxin_session_stats(self.sessions[slot], pointer(&stats), place)
                }
                24 => {
                    let from = any(&self.sessions, input)?;
                    if from == self.sessions[own] {
                        return Ok(());
                    }
                    self.drop_session(own);
                    moxin_session_fork(from, &mut self.sessions[own], place)
                }
                25 => moxin_session_rewind(self.sessions[slot], number(input)? as usize, place),
                26 => match input.int_in_range(0..=3)? {
                    0..=2 => moxin_session_reset(self.sessions[slot], place),
                    _ => {
                        let mut tokens = 0;
                        moxin_session_prompt_tokens(self.sessions[slot], &mut tokens, place)
                    }
                },
                27 => match input.int_in_range(0..=3)? {
                    0 => moxin_suspend(input.int_in_range(0..=20)?, place),
                    1 => moxin_memory_set_limits(number(input)?, number(input)?, place),
                    2 => self.set_log(place, input)?,
                    _ => {
                        let stats = sized::<moxin_memory_stats>(input)?;
                        moxin_memory_stats_get(pointer(&stats), place)
                    }
                },
                28 => self.free(own, input)?,
                29 => self.small_call(slot, input)?,
                _ => self.fork(input)?,
            }
        };
        check(status, error, !place.is_null());
        let permitted = if self.forked {
            &[Status::InvalidState][..]
        } else {
            PERMITTED[call]
        };
        assert!(
            permitted.contains(&status) || status == Status::Ok,
            "{status:?} of call {call}{}",
            if self.forked { " in a child" } else { "" }
        );
        Ok(())
    }

    /// # Safety
    /// As for the calls themselves.
    unsafe fn image_from_pixels(
        &mut self,
        slot: usize,
        place: *mut *mut moxin_error,
        input: &mut Unstructured,
    ) -> Result<moxin_status> {
        let (width, height) = (number(input)? as u32, number(input)? as u32);
        let (stride, format) = (number(input)? as usize, number(input)?.min(9) as u32);
        let row = u128::from(width) * [3, 4, 4, 1, 1, 1, 1, 1, 1, 1][format as usize];
        let needed = row + stride as u128 * u128::from(height.saturating_sub(1));
        let refused = row == 0
            || height == 0
            || format > MOXIN_PIXEL_FORMAT_GRAY8
            || (stride as u128) < row
            || width.max(height) > 65_535;
        if !refused && needed > 1 << 20 {
            return Ok(moxin_status::Ok);
        }
        let pixels = Block::new(if refused { 1 } else { needed as usize });
        self.drop_image(slot);
        // SAFETY: the pixels all exist, or the picture is refused by its size.
        Ok(unsafe {
            moxin_image_from_pixels(
                pixels.pointer(),
                width,
                height,
                stride,
                format,
                &mut self.images[slot],
                place,
            )
        })
    }

    /// # Safety
    /// As for the calls themselves.
    unsafe fn generate_start(
        &mut self,
        slot: usize,
        place: *mut *mut moxin_error,
        input: &mut Unstructured,
    ) -> Result<moxin_status> {
        let (op, wants_events) = (self.op(input)?, input.ratio(7, 8)?);
        let callback: moxin_event_fn = if wants_events { Some(on_event) } else { None };
        let received = Arc::new(Received::default());
        let user_data = Arc::as_ptr(&received).cast_mut().cast();
        // SAFETY: the user data lives until the stream has ended: see `leave`.
        let status = unsafe {
            moxin_session_start(
                self.sessions[slot],
                pointer(&op),
                callback,
                user_data,
                Some(destroy),
                place,
            )
        };
        self.streams.push((received, status == moxin_status::Ok));
        Ok(status)
    }

    /// # Safety
    /// As for the calls themselves.
    unsafe fn set_log(
        &mut self,
        place: *mut *mut moxin_error,
        input: &mut Unstructured,
    ) -> Result<moxin_status> {
        let callback: moxin_log_fn = if input.ratio(3, 4)? {
            Some(on_log)
        } else {
            None
        };
        let received = Arc::new(Received::default());
        let user_data = Arc::as_ptr(&received).cast_mut().cast();
        // SAFETY: the user data lives until the log was destroyed: see `leave`.
        let status = unsafe {
            moxin_set_log(
                callback,
                number(input)? as u32,
                user_data,
                Some(destroy),
                place,
            )
        };
        self.logs.push(received);
        Ok(status)
    }

    /// Frees something, in any state.
    ///
    /// # Safety
    /// As for the calls themselves.
    unsafe fn free(&mut self, slot: usize, input: &mut Unstructured) -> Result<moxin_status> {
        // SAFETY: what is freed is not used again, and the lasting model is not freed.
        unsafe {
            match input.int_in_range(0..=4)? {
                0 => self.drop_image(slot),
                1 => moxin_embedding_free(replace(&mut self.embeddings[slot], null_mut())),
                2 => self.drop_session(slot),
                3 => moxin_cancel_free(replace(&mut self.cancels[slot], null_mut())),
                _ => moxin_model_free(replace(&mut self.models[slot.max(1)], null_mut())),
            }
        }
        Ok(moxin_status::Ok)
    }

    /// Makes a call that returns no status.
    ///
    /// # Safety
    /// As for the calls themselves.
    unsafe fn small_call(&mut self, slot: usize, input: &mut Unstructured) -> Result<moxin_status> {
        // SAFETY: handles are NULL or alive.
        unsafe {
            match input.int_in_range(0..=8)? {
                0 | 1 => moxin_session_cancel(self.sessions[slot]),
                2 => {
                    let slot = slot.max(self.lasting);
                    moxin_cancel_free(self.cancels[slot]);
                    self.cancels[slot] = moxin_cancel_new();
                }
                3 => moxin_cancel_trigger(self.cancels[slot]),
                4 => moxin_resume(),
                5 => moxin_memory_trim(),
                6 => drop(moxin_backend_available(number(input)? as u32)),
                7 => assert!(!moxin_status_name(number(input)? as u32).is_null()),
                _ => assert!(
                    !moxin_version().is_null()
                        && !moxin_build_info().is_null()
                        && moxin_abi_version() == MOXIN_ABI_VERSION
                ),
            }
        }
        Ok(moxin_status::Ok)
    }

    /// Forks. The child makes some calls, none of which may block, and ends; the parent waits for
    /// it.
    fn fork(&mut self, input: &mut Unstructured) -> Result<moxin_status> {
        let calls = input.int_in_range(1..=CHILD_CALLS)?;
        self.forks += 1;
        if self.forks <= FORKS {
            // SAFETY: the child only makes calls of this library, and ends.
            match unsafe { libc::fork() } {
                0 => self.be_child(calls, input),
                -1 => (),
                child => wait_for_child(child),
            }
        }
        Ok(moxin_status::Ok)
    }

    fn be_child(&mut self, calls: usize, input: &mut Unstructured) -> ! {
        self.forked = true;
        let stood = catch_unwind(AssertUnwindSafe(|| {
            (0..calls).all(|_| self.call(input).is_ok() || input.is_empty())
        }))
        .is_ok();
        let status = if stood { 0 } else { 1 };
        // Not with `exit`: libFuzzer treats that as a fault, and MLX's threads may have been
        // freeing memory that its destructors free. SAFETY: the process ends.
        unsafe { libc::_exit(status) }
    }

    fn drop_image(&mut self, slot: usize) {
        // SAFETY: NULL or alive, and not used again.
        unsafe { moxin_image_free(replace(&mut self.images[slot], null_mut())) };
    }

    fn drop_session(&mut self, slot: usize) {
        // SAFETY: NULL or alive, and not used again.
        unsafe { moxin_session_free(replace(&mut self.sessions[slot], null_mut())) };
    }

    /// Frees all handles of its own, and checks that streams and logs ended as promised.
    fn leave(mut self) {
        // SAFETY: what is freed is not used again.
        unsafe {
            moxin_resume();
            moxin_set_log(None, MOXIN_LOG_LEVEL_OFF, null_mut(), None, null_mut());
            moxin_memory_set_limits(u64::MAX, 256 << 20, null_mut());
            self.sessions
                .iter()
                .for_each(|session| moxin_session_cancel(*session));
            (self.lasting..SLOTS).for_each(|slot| self.drop_session(slot));
            (self.lasting..SLOTS).for_each(|slot| self.drop_image(slot));
            self.embeddings[self.lasting..]
                .iter()
                .for_each(|embedding| moxin_embedding_free(*embedding));
            self.cancels[self.lasting..]
                .iter()
                .for_each(|cancel| moxin_cancel_free(*cancel));
            self.models[1..]
                .iter()
                .for_each(|model| moxin_model_free(*model));
        }
        for (received, began) in &self.streams {
            wait_for(&received.destroyed, "a stream");
            assert_eq!(
                received.finished.load(Ordering::SeqCst),
                u32::from(*began),
                "one last event for each stream that started"
            );
        }
        self.logs
            .iter()
            .for_each(|received| wait_for(&received.destroyed, "a log"));
    }
}

/// Returns the number of handles that are not freed yet.
fn handles() -> u64 {
    let mut stats = Block::new(size_of::<moxin_memory_stats>());
    stats.put(0, size_of::<moxin_memory_stats>());
    // SAFETY: the struct contains its size.
    unsafe {
        assert_eq!(
            moxin_memory_stats_get(stats.pointer(), null_mut()),
            moxin_status::Ok
        );
        (*stats.pointer::<moxin_memory_stats>()).handles
    }
}

/// Waits for a child, which must end soon and successfully.
fn wait_for_child(child: libc::pid_t) {
    let start = Instant::now();
    let mut status = 0;
    // SAFETY: a child of this process that nobody else waits for, and a valid pointer.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if start.elapsed() > TIMEOUT {
            // SAFETY: as above.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, &mut status, 0);
            }
            panic!("a forked child did not end");
        }
        sleep(Duration::from_micros(200));
    }
    assert_eq!(status, 0, "a forked child");
}

/// The number of the call that forks, which is also the number of calls before it.
const FORK: usize = 30;

use moxin_status as Status;

/// The statuses that each call may return, besides [`Status::Ok`].
const PERMITTED: [&[Status]; FORK + 1] = {
    use Status::*;
    const ARGUMENT: &[Status] = &[NullArgument, InvalidArgument];
    const STATE: &[Status] = &[
        NullArgument,
        InvalidArgument,
        InvalidState,
        Busy,
        OutOfMemory,
    ];
    const FOLDER: &[Status] = &[
        NullArgument,
        InvalidArgument,
        NotFound,
        Io,
        CorruptModel,
        UnsupportedModel,
        OutOfMemory,
        BackendUnavailable,
    ];
    [
        &[NullArgument, InvalidArgument, UnsupportedImage, OutOfMemory],
        &[
            NullArgument,
            InvalidArgument,
            NotFound,
            Io,
            UnsupportedImage,
            OutOfMemory,
        ],
        &[NullArgument, InvalidArgument, OutOfMemory],
        &[NullArgument, InvalidArgument, OutOfMemory],
        ARGUMENT,
        &[
            NullArgument,
            InvalidArgument,
            NotFound,
            Io,
            CorruptModel,
            UnsupportedModel,
            OutOfMemory,
            BackendUnavailable,
            Cancelled,
            Timeout,
            Suspended,
        ],
        FOLDER,
        FOLDER,
        ARGUMENT,
        &[NullArgument, InvalidArgument, NotFound],
        ARGUMENT,
        &[
            NullArgument,
            InvalidArgument,
            InvalidState,
            OutOfMemory,
            Cancelled,
            Timeout,
            Suspended,
        ],
        ARGUMENT,
        ARGUMENT,
        &[NullArgument, InvalidArgument, InvalidState, OutOfMemory],
        STATE,
        STATE,
        STATE,
        STATE,
        STATE,
        &[
            NullArgument,
            InvalidArgument,
            InvalidState,
            Busy,
            OutOfMemory,
            ContextFull,
            Suspended,
        ],
        &[
            NullArgument,
            InvalidArgument,
            InvalidState,
            Busy,
            OutOfMemory,
            ContextFull,
            Suspended,
            Cancelled,
            Timeout,
        ],
        STATE,
        ARGUMENT,
        STATE,
        STATE,
        STATE,
        &[NullArgument, InvalidArgument, Timeout],
        &[],
        &[],
        &[],
    ]
};

/// Checks the outcome of a call: an allowed status, and an error with the same status if one was
/// wanted.
fn check(status: moxin_status, error: *mut moxin_error, wanted: bool) {
    // SAFETY: NULL, or an error from a call; a text is as long as it says.
    unsafe {
        let text = |error| {
            let text = moxin_error_message(error);
            String::from_utf8_lossy(slice::from_raw_parts(text.data.cast(), text.len)).into_owned()
        };
        assert!(
            !matches!(status, moxin_status::Panic | moxin_status::Backend),
            "{status:?}: {}",
            text(error)
        );
        assert_eq!(
            error.is_null(),
            status == moxin_status::Ok || !wanted,
            "{status:?}"
        );
        let mut cause: *const moxin_error = error;
        while !cause.is_null() {
            assert!(
                moxin_error_status(cause) == status && !text(cause).is_empty(),
                "{status:?}: {}",
                text(cause)
            );
            cause = moxin_error_cause(cause);
        }
        moxin_error_free(error);
    }
}

fn wait_for(destroyed: &AtomicU32, what: &str) {
    let start = Instant::now();
    while destroyed.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < TIMEOUT, "{what} was not destroyed");
        sleep(Duration::from_micros(200));
    }
}

fn path(input: &mut Unstructured) -> Result<Option<CString>> {
    Ok(match input.int_in_range(0..=5)? {
        0 => None,
        1 => CString::new(text(input)?).ok(),
        2 => Some(in_repository("models/demo.png")),
        3 => Some(in_repository("models/tiny/config.json")),
        _ => Some(in_repository("models/tiny")),
    })
}

fn chars(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(null(), |text| text.as_ptr())
}

/// Parameters of a model, and the template they point to.
struct ModelParams {
    block: Option<Block>,
    _template: Option<CString>,
}

impl ModelParams {
    fn pointer(&self) -> *mut moxin_model_params {
        pointer(&self.block)
    }
}

fn model_params(input: &mut Unstructured) -> Result<ModelParams> {
    let mut block = params(input, moxin_model_params_init)?;
    let template = if input.ratio(1, 8)? {
        CString::new(text(input)?).ok()
    } else {
        None
    };
    if let Some(block) = &mut block {
        block.put(
            offset_of!(moxin_model_params, chat_template),
            chars(&template),
        );
    }
    Ok(ModelParams {
        block,
        _template: template,
    })
}

fn budget(input: &mut Unstructured) -> Result<Option<Block>> {
    unsafe extern "C" fn zeros(_: *mut moxin_pixel_budget, _: usize) {}
    params(input, zeros)
}

/// Parameters of a session, and the stop texts and the budget they point to.
struct SessionParams {
    block: Option<Block>,
    _stop: Box<(Vec<CString>, Vec<*const c_char>)>,
    _budget: Option<Block>,
}

impl SessionParams {
    fn pointer(&self) -> *mut moxin_session_params {
        pointer(&self.block)
    }
}

fn session_params(input: &mut Unstructured) -> Result<SessionParams> {
    let mut block = params(input, moxin_session_params_init)?;
    let mut stop = Box::new((Vec::new(), Vec::new()));
    for _ in 0..input.int_in_range(0..=2)? {
        stop.0.extend(CString::new(text(input)?));
    }
    stop.1 = stop.0.iter().map(|text| text.as_ptr()).collect();
    if input.ratio(1, 8)? {
        stop.1.push(null());
    }
    let budget = budget(input)?;
    if let Some(block) = &mut block {
        let texts = if stop.1.is_empty() {
            null()
        } else {
            stop.1.as_ptr()
        };
        block.put(offset_of!(moxin_session_params, stop), texts);
        block.put(offset_of!(moxin_session_params, stop_count), stop.1.len());
        let budget: *const moxin_pixel_budget = pointer(&budget);
        block.put(offset_of!(moxin_session_params, image_budget), budget);
    }
    Ok(SessionParams {
        block,
        _stop: stop,
        _budget: budget,
    })
}
