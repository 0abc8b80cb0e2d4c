//! One kernel file on an emulated device: a call uploads its arguments, launches, and brings the results back.

use std::cell::RefCell;
use std::path::Path;

use bytemuck::Pod;
use tessera_cuda_emulator::{Argument as DeviceArgument, Emulator, Module, Options, Report};

/// What a kernel is given.
pub enum Argument<'a> {
    /// Memory that must come back as it was.
    Input(&'a [u8]),
    /// Memory that comes back as the kernel left it.
    Output(&'a mut [u8]),
    /// A number.
    Value(DeviceArgument),
}

pub fn input<T: Pod>(values: &[T]) -> Argument<'_> {
    Argument::Input(bytemuck::cast_slice(values))
}

pub fn output<T: Pod>(values: &mut [T]) -> Argument<'_> {
    Argument::Output(bytemuck::cast_slice_mut(values))
}

pub fn unsigned(value: usize) -> Argument<'static> {
    Argument::Value(u32::try_from(value).unwrap().into())
}

pub fn long(value: usize) -> Argument<'static> {
    Argument::Value((value as u64).into())
}

pub fn float(value: f64) -> Argument<'static> {
    Argument::Value((value as f32).into())
}

pub fn double(value: f64) -> Argument<'static> {
    Argument::Value(value.into())
}

/// The geometry of a launch: 256 threads in a block unless it says otherwise.
#[derive(Clone, Copy)]
pub struct Launch {
    grid: [usize; 3],
    pub threads: usize,
    pub shared: usize,
}

impl Launch {
    pub fn grid(grid: [usize; 3]) -> Self {
        Self { grid, threads: 256, shared: 0 }
    }

    pub fn blocks(blocks: usize) -> Self {
        Self::grid([blocks, 1, 1])
    }

    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(self, shared: usize) -> Self {
        Self { shared, ..self }
    }
}

thread_local! {
    /// A file of kernels that stands in for the compiled one in this thread.
    static REPLACED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Runs `body` with the kernels of `file` replaced by those of `ptx`.
pub fn with_kernels<R>(file: &str, ptx: &str, body: impl FnOnce() -> R) -> R {
    REPLACED.set(Some((file.into(), ptx.into())));
    let result = body();
    REPLACED.set(None);
    result
}

/// The kernels of one file.
pub struct Kernels {
    emulator: Emulator,
    module: Module,
}

impl Kernels {
    /// Loads a file that `scripts/kernels` compiled: `attention_forward` is that of `kernels/attention/forward.cu`.
    pub fn load(file: &str) -> Self {
        let replaced = REPLACED.with_borrow(|replaced| {
            replaced.as_ref().filter(|(name, _)| name == file).map(|(_, ptx)| ptx.clone())
        });
        let ptx = replaced.unwrap_or_else(|| {
            let folder = std::env::var("TESSERA_KERNELS")
                .expect("TESSERA_KERNELS names the folder of the compiled kernels: run scripts/test-cuda");
            let path = Path::new(&folder).join(format!("{file}.ptx"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        });
        let mut emulator = Emulator::new(Options { memory: 1 << 28, ..Options::default() });
        let module = emulator.load_module(&ptx).unwrap_or_else(|error| panic!("{file}: {error}"));
        Self { emulator, module }
    }

    /// Launches a kernel; panics where the emulator finds anything wrong with it.
    pub fn run(&mut self, kernel: &str, launch: Launch, arguments: &mut [Argument<'_>]) -> Report {
        let function = self.module.function(kernel).unwrap_or_else(|error| panic!("{error}"));
        let on_device: Vec<DeviceArgument> = arguments.iter().map(|argument| self.upload(argument)).collect();
        let extents = launch.grid.map(|extent| u32::try_from(extent).unwrap());
        let (threads, shared) = (launch.threads as u32, launch.shared as u32);
        let report = self
            .emulator
            .launch(&function, extents, [threads, 1, 1], shared, &on_device)
            .unwrap_or_else(|error| panic!("{error}"));
        let hazards: Vec<String> = report.hazards.iter().map(ToString::to_string).collect();
        assert!(hazards.is_empty(), "{}", hazards.join("\n"));
        for (argument, on_device) in arguments.iter_mut().zip(&on_device) {
            self.download(kernel, argument, on_device);
        }
        report
    }

    fn upload(&mut self, argument: &Argument<'_>) -> DeviceArgument {
        let bytes: &[u8] = match argument {
            Argument::Input(bytes) => bytes,
            Argument::Output(bytes) => bytes,
            Argument::Value(value) => return value.clone(),
        };
        self.emulator.upload(bytes).unwrap().into()
    }

    fn download(&mut self, kernel: &str, argument: &mut Argument<'_>, on_device: &DeviceArgument) {
        let DeviceArgument::Pointer(pointer) = *on_device else { return };
        match argument {
            Argument::Input(bytes) => {
                let found = self.emulator.read(pointer, bytes.len()).unwrap();
                assert!(found == *bytes, "{kernel} wrote to what it should only read");
            }
            Argument::Output(bytes) => {
                bytes.copy_from_slice(&self.emulator.read(pointer, bytes.len()).unwrap())
            }
            Argument::Value(_) => return,
        }
        self.emulator.free(pointer).unwrap();
    }
}
