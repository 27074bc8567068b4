#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinion_fuzz::mysql_client_messages::run(data));
