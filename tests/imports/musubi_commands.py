"""Command lines of musubi-tuner: every script of every architecture, for training, caching and generating.

Written from the specification of its options. `tiny` is the flavour at which a training is planned.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command, and the flavour at which it is planned; empty where nothing is trained."""

    words: str
    tiny: str = ""


_RUN = "--dataset_config data.toml --output_dir out --output_name mine --max_train_steps 2 --seed 7"
_USUAL = f"{_RUN} --sdpa --mixed_precision bf16 --optimizer_type AdamW --learning_rate 1e-4 --gradient_checkpointing"
_LOADER = "--max_data_loader_n_workers 2 --persistent_data_loader_workers"

TRAINING = (
    Command(f"hv_train_network.py --dit hv.pth {_USUAL} --network_module networks.lora --network_dim 8 "
            "--timestep_sampling shift --discrete_flow_shift 7.0 --split_attn --vae_chunk_size 32 --vae_tiling",
            "tiny"),
    Command(f"hv_train.py --dit hv.pth {_USUAL} --trainable_modules . --vae_dtype float16", "tiny"),
    Command(f"hv_1_5_train_network.py --task t2v --dit hv15.pth --vae v.pth {_USUAL} "
            "--network_module networks.lora_hv_1_5 --network_dim 4 --vae_sample_size 128 --timestep_sampling logsnr "
            "--logit_mean 0.5 --logit_std 1.2", "tiny"),
    Command(f"hv_1_5_train_network.py --task i2v --image_encoder s.pth {_USUAL} "
            "--network_module networks.lora_hv_1_5 --byt5 b.pth", "tiny-i2v"),
    Command(f"wan_train_network.py --task t2v-1.3B --dit w.pth {_USUAL} {_LOADER} "
            "--network_module networks.lora_wan --network_dim 32 --timestep_sampling shift --discrete_flow_shift 3.0 "
            "--save_every_n_epochs 1 --fp8_base", "tiny"),
    Command(f"wan_train_network.py --task t2v-14B {_USUAL} --network_module networks.lora_wan --network_dim 16 "
            "--network_alpha 16 --lr_scheduler cosine --lr_warmup_steps 0.5 --vae_cache_cpu --t5 t5.pth --fp8_t5 "
            "--fp8_base --fp8_scaled", "tiny"),
    Command(f"wan_train_network.py --task i2v-14B --clip c.pth {_USUAL} --network_module networks.lora_wan "
            "--weighting_scheme logit_normal --logit_std 0.8", "tiny-i2v"),
    Command(f"wan_train_network.py --task t2v-A14B --dit low.pth --dit_high_noise high.pth {_USUAL} "
            "--network_module networks.lora_wan --timestep_boundary 875 --offload_inactive_dit", "tiny-pair"),
    Command(f"wan_train_network.py --task i2v-A14B --min_timestep 900 --max_timestep 1000 {_USUAL} "
            "--network_module networks.lora_wan --preserve_distribution_shape --timestep_sampling shift", "tiny-high"),
    Command(f"wan_train_network.py --task t2v-14B --network_dim=8 {_USUAL} --network_module networks.lora_wan "
            "--blocks_to_swap 1 --use_pinned_memory_for_block_swap --block_swap_h2d_only", "tiny"),
    Command(f"fpack_train_network.py --vae v.pth --text_encoder1 a --text_encoder2 b --image_encoder c {_USUAL} "
            "--network_module networks.lora_framepack --network_dim 32 --timestep_sampling shift "
            "--weighting_scheme none "
            "--discrete_flow_shift 3.0 --fp8_llm", "tiny"),
    Command(f"fpack_train_network.py --f1 --latent_window_size 2 {_USUAL} --network_module networks.lora_framepack",
            "tiny-f1"),
    Command(f"flux_kontext_train_network.py --dit k.pth --vae ae.pth --text_encoder1 t --text_encoder2 c "
            f"{_USUAL} --network_module networks.lora_flux --timestep_sampling flux_shift --fp8_t5", "tiny-kontext"),
    Command(f"flux_2_train_network.py --model_version dev --dit f.pth --text_encoder m {_USUAL} "
            "--network_module networks.lora_flux_2 --timestep_sampling flux2_shift --compile --compile_backend eager",
            "tiny-dev"),
    Command(f"flux_2_train_network.py --model_version klein-base-4b {_USUAL} --network_module networks.lora_flux_2 "
            "--network_dim 4 --network_alpha 0 --num_timestep_buckets 5 --timestep_sampling sigmoid "
            "--sigmoid_scale 1.3", "tiny"),
    Command(f"flux_2_train_network.py --model_version klein-9b {_USUAL} --network_module "
            "musubi_tuner.networks.lora_flux_2 "
            "--network_dropout 0.1", "tiny"),
    Command(f"qwen_image_train_network.py --dit q.pth --vae v.pth --text_encoder e --model_version original "
            f"{_USUAL} --timestep_sampling shift --weighting_scheme none --discrete_flow_shift 2.2 --fp8_vl "
            "--network_module networks.lora_qwen_image --network_dim 16", "tiny"),
    Command(f"qwen_image_train_network.py --model_version edit {_USUAL} --network_module networks.lora_qwen_image "
            "--timestep_sampling qwen_shift", "tiny-edit"),
    Command(f"qwen_image_train_network.py --edit_plus {_USUAL} --network_module networks.lora_qwen_image "
            "--timestep_sampling qinglong_qwen", "tiny-edit-plus"),
    Command(f"qwen_image_train_network.py --model_version layered {_USUAL} --network_module networks.lora_qwen_image",
            "tiny-layered"),
    Command(f"qwen_image_train.py --dit q.pth {_USUAL} --full_bf16 --optimizer_type adafactor "
            "--optimizer_args relative_step=False scale_parameter=False warmup_init=False --fused_backward_pass "
            "--max_grad_norm 0 --mem_eff_save", "tiny"),
    Command(f"kandinsky5_train_network.py --task k5-lite-t2v-5s-sd {_USUAL} --network_module networks.lora_kandinsky "
            '--optimizer_args "weight_decay=0.001" "betas=(0.9,0.95)" --lr_scheduler constant_with_warmup '
            "--lr_warmup_steps 1 --timestep_sampling shift --discrete_flow_shift 5.0 --scheduler_scale 10.0", "tiny"),
    Command(f"kandinsky5_train_network.py --task k5-lite-i2v-5s-sd {_USUAL} --network_module networks.lora_kandinsky",
            "tiny-i2v"),
    Command(f"kandinsky5_train_network.py --task k5-lite-t2i-hd {_USUAL} --network_module networks.lora_kandinsky",
            "tiny"),
    Command(f"zimage_train_network.py --dit z.pth {_USUAL} --network_module networks.lora_zimage "
            "--timestep_sampling uniform --lr_scheduler rex --lr_scheduler_min_lr_ratio 0.05 --lr_warmup_steps 1",
            "tiny"),
    Command(f"zimage_train.py --dit z_turbo.pth {_USUAL} --full_bf16 --block_swap_optimizer_patch_params", "tiny"),
    Command(f"ideogram4_train_network.py --dit i.pth {_USUAL} --network_module networks.lora_ideogram4 "
            "--sampler_preset V4_TURBO_12 --log_loss_stats", "tiny"),
    Command(f"krea2_train_network.py --dit raw.pth --turbo_dit t.pth {_USUAL} "
            "--network_module networks.lora_krea2 --timestep_sampling krea2_shift --lr_scheduler warmup_stable_decay "
            "--lr_decay_steps 1", "tiny"),
    Command(f"hidream_o1_train_network.py --dit h.pth {_USUAL} --network_module networks.lora_hidream_o1 "
            "--timestep_sampling uniform --weighting_scheme none"),
    Command(f"hidream_o1_train.py --dit h.pth {_USUAL} --dino_loss_weight 0.1"),
    Command(f"flux_2_train_network_self_flow.py --self_flow --mask_ratio 0.3 {_USUAL} "
            "--network_module networks.lora_flux_2"),
)  # fmt: skip

CACHING = (
    Command("cache_latents.py --dataset_config data.toml --vae v.pt --vae_chunk_size 32 --vae_tiling", "tiny"),
    Command("cache_text_encoder_outputs.py --dataset_config data.toml --text_encoder1 a --text_encoder2 b "
            "--batch_size 16 "
            "--fp8_llm", "tiny"),
    Command("wan_cache_latents.py --dataset_config data.toml --vae v.pth --i2v --clip c.pth", "tiny-i2v"),
    Command("wan_cache_text_encoder_outputs.py --dataset_config data.toml --t5 t.pth --batch_size 16", "tiny"),
    Command("fpack_cache_latents.py --dataset_config data.toml --image_encoder i --f1 --vae_chunk_size 32", "tiny-f1"),
    Command("hidream_o1_cache_pixel.py --dataset_config data.toml --batch_size 1"),
    Command("qwen_image_cache_text_encoder_outputs.py --dataset_config data.toml --text_encoder e --model_version edit",
            "tiny-edit"),
    Command("zimage_cache_latents.py --dataset_config data.toml --vae v --skip_existing --keep_cache --num_workers 2",
            "tiny"),
    Command("ideogram4_cache_text_encoder_outputs.py --dataset_config data.toml --text_cache_dtype fp8_e4m3fn", "tiny"),
    Command("kandinsky5_cache_latents.py --dataset_config data.toml --vae v --nabla_resize", "tiny"),
    Command("krea2_cache_latents.py --dataset_config data.toml --vae v --debug_mode console --console_width 80",
            "tiny"),
)  # fmt: skip

GENERATING = (
    Command(
        "wan_generate_video.py --fp8 --task t2v-1.3B --video_size 480 832 --video_length 81 --infer_steps 20 "
        '--prompt "a red fox" --save_path out --output_type both --attn_mode torch --lora_weight a.pth '
        "b.pth --lora_multiplier 0.8"
    ),
    Command('hv_generate_video.py --prompt "a fox" --video_length 33 --embedded_cfg_scale 6.0 --flow_shift 7.0'),
    Command('fpack_generate_video.py --prompt "a fox" --image_path s.png --video_seconds 4 --magcache_mag_ratios 0'),
    Command('hv_1_5_generate_video.py --prompt "a fox" --cpu_noise --guidance_scale 6'),
    Command('flux_kontext_generate_image.py --prompt "turn it" --control_image_path a.png --image_size 1024 768'),
    Command('flux_2_generate_image.py --model_version dev --prompt "a fox" --control_image_path a.png b.png'),
    Command('qwen_image_generate_image.py --model_version edit --prompt "a fox" --negative_prompt " " --seed 3'),
    Command('kandinsky5_generate_video.py --task k5-lite-t2v-5s-sd --prompt "a fox" --frames 121 --steps 50 -i s.png'),
    Command('zimage_generate_image.py --prompt "a fox" --guidance_scale 4.0 --bell'),
    Command('krea2_generate_image.py "a fox" --width 1024 --height 768 --num-images 2 --y1 0.5'),
    Command('ideogram4_generate_image.py --prompt "a fox" --unconditional_dit u --initial_sigma 1.004'),
    Command('hidream_o1_generate_image.py --prompt "a fox" --ref_images a.png --image_size 2048 2048'),
    Command("merge_lora.py --dit d.pth --lora_weight a.pth --save_merged_model m.pth"),
    Command("lora_post_hoc_ema.py a.pth b.pth --output_file c.pth --sigma_rel 0.2"),
)
