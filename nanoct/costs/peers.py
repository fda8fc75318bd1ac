"""Each method as other libraries do it, on the same weights, pairs, masks: right-padded rows in transformers or peft.

    ICL                    transformers reads the demos into its cache
    prompt, prefix tuning  transformers, k copies of the trained embeddings, or of the trained cache
    LoRA, DoRA             peft
    TTT                    peft, on batch orders of all demos
    CT-Prompt              transformers, k copies of the demos' trained embeddings, each with its mask, before its pair
    CT-KV                  transformers, k copies of the demos' trained cache, each with its mask, before its pair

There are k rows, one for each demo (solved example). As in the released code, every token gets logits, and tokens that
are not part of an answer have the label -100. A baseline, or peer, is a method in one of these libraries.
"""

from inspect import signature

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nanoct import adapters
from nanoct.fewshot import encode_context, first_tokens
from nanoct.io.weights import config_json
from nanoct.methods import ct_kv, ttt
from nanoct.packing import visible

DROPOUT = ct_kv.Config.token_dropout


def load(folder, dtype, device):
    """Load a Llama from a folder into transformers."""
    import transformers  # from the test extra, as all late imports here

    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return theirs.requires_grad_(False).eval().to(device)


def twin(model):
    """A transformers model on the very weights of a nanoct Llama: they share their memory."""
    import transformers

    config = transformers.LlamaConfig.from_dict(config_json(model.config, model.dtype))
    with model.device:
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    theirs.load_state_dict(model.state_dict(), strict=not model.config.tied, assign=True)
    theirs.tie_weights()
    return theirs.requires_grad_(False).eval()


class Step:
    """One step of a baseline: loss() draws masks and runs forward; a call trains the leaves once and returns the loss.

    Leaves are the trained tensors; without them a call only runs forward and returns None. undo() puts
    transformers' model back as it was. size: (tokens, keys, logits) that FLOPs depend on.
    """

    def __init__(self, loss, leaves=(), lr=0.0, undo=lambda: None, size=None):
        self.loss, self.leaves, self.undo, self.size = loss, leaves, undo, size
        if leaves:
            self.optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.999), weight_decay=0.0)

    def __call__(self):
        if not self.leaves:
            with torch.no_grad():
                self.loss()
            return None
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward(inputs=self.leaves)
        torch.nn.utils.clip_grad_norm_(self.leaves, 1.0)
        self.optimizer.step()
        return loss.item()


def rows(task, device):
    """The k pairs right-padded, as transformers takes them: ids, labels, attention mask, each (k, T)."""
    pad = lambda parts, value: pad_sequence([torch.tensor(part) for part in parts], True, value).to(device)
    return (pad([[*d.x, *d.y] for d in task.demos], 0),
            pad([[-100] * len(d.x) + [*d.y] for d in task.demos], -100),
            pad([[1] * (len(d.x) + len(d.y)) for d in task.demos], 0))


def padded(theirs, task, context, seed=0, labels_only=False, hide=True):
    """A step of CT-KV: k padded rows, each behind a copy of the keys and values of a context.

    labels_only: only tokens that predict an answer get logits. hide = False turns off leave-one-out (row i does not see
    demo i) and token dropout (entries hidden at random); that is a step of prefix tuning.
    """
    from transformers import DynamicCache

    generator, k, P = torch.Generator().manual_seed(seed), len(task.demos), len(context.owner)
    tokens, labels, real = rows(task, theirs.device)
    T, is_answer = tokens.shape[1], labels[:, 1:] != -100
    positions = torch.arange(P, P + T, device=theirs.device).expand(k, T)
    keys, values = leaves = [part.float().requires_grad_() for part in context.stack()]  # (L, 1, K, P, D)
    cache_name = "cache" if "cache" in signature(theirs.forward).parameters else "past_key_values"  # the older name

    def loss():
        seen = visible(context.owner, k, hide, DROPOUT * hide, generator)  # (k, P)
        cache = DynamicCache()
        for layer, kv in enumerate(zip(keys, values)):
            cache.update(*(part.to(theirs.dtype).expand(k, -1, -1, -1) for part in kv), layer)
        inputs = dict(input_ids=tokens, position_ids=positions, attention_mask=torch.cat([seen, real], dim=1))
        inputs[cache_name] = cache
        if not labels_only:
            return theirs(**inputs, labels=labels).loss
        hidden = theirs.model(**inputs).last_hidden_state[:, :-1][is_answer]  # (n, C)
        return F.cross_entropy(theirs.lm_head(hidden).float(), labels[:, 1:][is_answer])

    n_logit = int(is_answer.sum()) if labels_only else k * T
    return Step(loss, leaves, ct_kv.Config.lr, size=(k * T, P + T, n_logit))


def prompted(model, theirs, task, config, prompt, owner):
    """A step of prompt tuning, or of CT-Prompt if the prompt is the demos: k copies of trained embeddings.

    prompt: its P token ids. owner: the number of each token's demo, -1 for none.
    """
    k, generator, ids = len(task.demos), torch.Generator().manual_seed(0), torch.tensor([prompt], device=model.device)
    tokens, labels, real = rows(task, model.device)
    owner, pairs = torch.tensor(owner, device=model.device), model.embed(tokens)
    embeds = model.embed(ids).detach().float().requires_grad_()  # (1, P, C)
    positions = torch.arange(len(prompt) + tokens.shape[1], device=model.device).expand(k, -1)
    labels = torch.cat([torch.full((k, len(prompt)), -100, device=model.device), labels], 1)

    def loss():
        # leave-one-out hides no token of owner -1
        seen = visible(owner, k, True, getattr(config, "token_dropout", 0.0), generator)
        inputs = torch.cat([embeds.to(pairs.dtype).expand(k, -1, -1), pairs], 1)
        attention_mask = torch.cat([seen.to(real.dtype), real], 1)
        return theirs(inputs_embeds=inputs, position_ids=positions, attention_mask=attention_mask, labels=labels,
                      use_cache=False).loss

    return Step(loss, [embeds], config.lr)


def low_rank(theirs, config, batch, use_dora=False):
    """A step of LoRA, DoRA or TTT in peft. batch() returns its ids, labels and attention mask."""
    from peft import LoraConfig, get_peft_model

    targets = [name for name in adapters.TARGETS if name not in ("c_attn", "c_proj", "c_fc")]  # which are GPT-2's
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, use_dora=use_dora,
                          target_modules=targets)
    wrapped = get_peft_model(theirs, settings).train()

    def loss():
        ids, labels, mask = batch()
        return wrapped(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss

    def undo():
        wrapped.unload()
        theirs.requires_grad_(False).eval()

    return Step(loss, [p for p in wrapped.parameters() if p.requires_grad], config.lr, undo)


def orders(model, task, config):
    """Return batch() of TTT: all demos in random orders, with labels on all answers."""
    k, generator = len(task.demos), torch.Generator().manual_seed(0)

    def batch():
        drawn = [torch.randperm(k, generator=generator).tolist() for _ in range(config.batch)]
        ids, is_answer = ttt.sequences(model, (), [[task.demos[i] for i in order] for order in drawn])
        return ids, ids.masked_fill(~is_answer, -100), torch.ones_like(ids)

    return batch


def peer(model, theirs, method, config, task):
    """Return (library, its Step of a method), or None if no library has it."""
    context = [token for d in task.demos for token in (*d.x, *d.y)]
    owner = [i for i, d in enumerate(task.demos) for _ in (*d.x, *d.y)]
    match method:
        case "icl":
            ids = torch.tensor([context], device=model.device)
            return "transformers", Step(lambda: theirs(input_ids=ids, use_cache=True, logits_to_keep=1))
        case "prompt_tuning":
            prompt = first_tokens(model, config.n_prefix)
            return "transformers", prompted(model, theirs, task, config, prompt, [-1] * config.n_prefix)
        case "ct_prompt":
            return "transformers", prompted(model, theirs, task, config, context, owner)
        case "prefix_tuning":
            prefix = encode_context(model, first_tokens(model, config.n_prefix))
            return "transformers", padded(theirs, task, prefix, hide=False)
        case "ct_kv":
            return "transformers", padded(theirs, task, encode_context(model, (), task.demos))
        case "lora" | "dora":
            batch = rows(task, model.device)
            return "peft", low_rank(theirs, config, lambda: batch, use_dora=method == "dora")
        case "ttt":
            return "peft", low_rank(theirs, config, orders(model, task, config))
    return None
