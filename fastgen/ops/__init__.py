"""The ops: one file each, its title page. Schema, public function, fake, autograd, autocast."""
