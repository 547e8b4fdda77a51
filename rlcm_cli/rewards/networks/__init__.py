"""Networks of transformers that rewards run, and what goes into them; of the models' authors no package is needed.

loading          published weights → a network, whole or not at all
clip_model       a contrastive image-text model: images and prompts → unit vectors
qwen_vl          a vision-language model of the Qwen-VL series: images and questions → answers, or how likely one is
open_clip        open_clip's names of weights → those of transformers
preprocessing    uint8 images → what a vision tower takes, without Pillow, on any device
prompt_cleaning  prompts as open_clip's tokenizer cleans them
tensor_file      one published file of tensors, read without running its code
linear_head      the stack of linear layers on top of aesthetic and image_reward
bertscore        how much of one text another one says
"""
