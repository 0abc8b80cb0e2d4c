//! libcurand: pseudo-random numbers. They are functions of the seed, but not the numbers that cuRAND gives.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Mutex;

use super::put;
use super::world::{Registry, current_device, stream_of, world};
use crate::DevicePointer;
use crate::driver::{Work, lock};
use crate::random::Random;

const SUCCESS: u32 = 0;
const NOT_INITIALIZED: u32 = 101;

struct Generator {
    stream: u64,
    random: Random,
}

static GENERATORS: Mutex<Registry<Generator>> = Mutex::new(Registry::new());

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandCreateGenerator(generator: *mut u64, _kind: c_uint) -> u32 {
    if current_device().is_none() {
        return NOT_INITIALIZED;
    }
    let made = lock(&GENERATORS).insert(Generator { stream: 0, random: Random::new(0) });
    unsafe { put(generator, made) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandDestroyGenerator(generator: u64) -> u32 {
    if lock(&GENERATORS).remove(generator).is_some() { SUCCESS } else { NOT_INITIALIZED }
}

fn change(generator: u64, change: impl FnOnce(&mut Generator)) -> u32 {
    match lock(&GENERATORS).get_mut(generator) {
        Some(found) => {
            change(found);
            SUCCESS
        }
        None => NOT_INITIALIZED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandSetPseudoRandomGeneratorSeed(generator: u64, seed: c_ulonglong) -> u32 {
    change(generator, |found| found.random = Random::new(seed))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandSetStream(generator: u64, stream: u64) -> u32 {
    change(generator, |found| found.stream = stream)
}

/// Draws now, writes when the stream comes to it.
fn generate(generator: u64, to: u64, draw: impl FnOnce(&mut Random) -> Vec<u8>) -> u32 {
    let mut drawn = None;
    let code = change(generator, |found| drawn = Some((found.stream, draw(&mut found.random))));
    let Some((stream, bytes)) = drawn else { return code };
    let Some(stream) = stream_of(stream) else { return NOT_INITIALIZED };
    let Some(device) = world().stream_device(stream) else { return NOT_INITIALIZED };
    let task = Work::Run(Box::new(move |world| world.device(device).write(DevicePointer(to), &bytes)));
    if world().enqueue(stream, task) { SUCCESS } else { NOT_INITIALIZED }
}

fn normals(random: &mut Random, count: usize, mean: f64, deviation: f64) -> impl Iterator<Item = f64> {
    let pairs = std::iter::repeat_with(|| random.normals()).flatten();
    pairs.take(count).map(move |value| mean + deviation * value)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandGenerateNormal(
    generator: u64,
    to: u64,
    count: usize,
    mean: f32,
    deviation: f32,
) -> u32 {
    let (mean, deviation) = (f64::from(mean), f64::from(deviation));
    generate(generator, to, |random| {
        normals(random, count, mean, deviation).flat_map(|value| (value as f32).to_le_bytes()).collect()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandGenerateNormalDouble(
    generator: u64,
    to: u64,
    count: usize,
    mean: f64,
    deviation: f64,
) -> u32 {
    generate(generator, to, |random| {
        normals(random, count, mean, deviation).flat_map(f64::to_le_bytes).collect()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandGenerateUniform(generator: u64, to: u64, count: usize) -> u32 {
    generate(generator, to, |random| {
        (0..count).flat_map(|_| (random.uniform() as f32).to_le_bytes()).collect()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandGenerateUniformDouble(generator: u64, to: u64, count: usize) -> u32 {
    generate(generator, to, |random| (0..count).flat_map(|_| random.uniform().to_le_bytes()).collect())
}
