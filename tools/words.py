"""Everyday words of picture captions, written by hand; the mini tokenizer keeps them whole."""

from __future__ import annotations

EVERYDAY = """
a an the this that these those some any each every both all no not one two three four five six seven eight nine ten
many
several few more most other another much very just only also too so such
and or but with without of in on at by to from into onto over under above below behind beside between near next
front back
around through across along against inside outside up down off out away toward towards while as for than then when
where
is are was were be been being am has have had having do does did doing can could will would may might must should
i you he she it we they me him her us them my your his its our their who whom whose which what why how there here
photo picture image drawing painting close view scene background foreground shot portrait
person people man men woman women boy boys girl girls child children kid kids baby adult lady guy group crowd family
couple
friend friends player players team worker rider driver skier surfer skateboarder snowboarder chef doctor teacher
student
police officer soldier bride groom tourist passenger pedestrian audience
head face hair eye eyes nose mouth ear ears hand hands arm arms leg legs foot feet finger body shoulder beard
dog dogs cat cats bird birds horse horses cow cows sheep goat pig elephant elephants bear bears zebra zebras giraffe
giraffes
duck ducks chicken fish monkey lion tiger rabbit mouse puppy kitten animal animals herd flock teddy
car cars bus buses truck trucks van train trains tram plane planes airplane airplanes jet helicopter boat boats ship
bicycle
bicycles bike bikes motorcycle motorcycles scooter taxi wheel wheels engine vehicle vehicles traffic
street streets road roads highway sidewalk corner intersection crosswalk bridge track tracks station platform
airport runway
parking lot light lights sign signs pole hydrant meter stop signal lamp fence gate wall walls building buildings
house houses
home tower church castle store shop market restaurant cafe hotel office school hospital park garden yard farm barn
city town
village clock statue fountain
room living bedroom bathroom kitchen hallway floor ceiling window windows door doors roof stairs shelf shelves
cabinet
counter table tables desk chair chairs couch sofa bed beds bench benches pillow blanket curtain rug carpet mirror
toilet sink
bathtub shower towel stove oven refrigerator fridge microwave toaster television tv screen monitor laptop computer
keyboard
phone cell remote camera book books magazine newspaper paper pen pencil scissors vase bottle bottles glass glasses
cup cups
mug bowl bowls plate plates knife fork spoon pot pan tray basket box boxes bag bags backpack suitcase suitcases
luggage
umbrella umbrellas toy toys doll kite kites ball balls bat racket glove frisbee skateboard skateboards surfboard
surfboards
ski skis snowboard rope flag candle gift balloon balloons
food meal breakfast lunch dinner dish pizza sandwich burger hot salad soup pasta rice bread toast cheese meat beef
sausage egg eggs vegetable vegetables carrot carrots broccoli potato potatoes tomato tomatoes onion lettuce fruit
fruits
apple apples banana bananas oranges lemon grapes strawberry cake cakes cupcake pie donut donuts doughnut cookie
cookies
chocolate ice cream sauce coffee tea milk juice water wine beer drink drinks slice slices piece pieces
sky cloud clouds sun moon star stars rain snow fog wind storm sunset sunrise day night morning afternoon evening
summer winter
spring autumn fall tree trees leaf leaves branch branches grass flower flowers plant plants bush forest woods field
fields
hill hills mountain mountains rock rocks stone stones sand beach ocean sea lake river stream pond wave waves shore
island
desert valley path trail ground dirt mud fire smoke air nature
red orange yellow green blue purple pink brown black white gray grey gold silver dark bright light colorful color
colors
colored beige tan
small little tiny large big huge tall short long wide narrow high low thin thick heavy round square flat old young
new modern
vintage clean dirty wet dry full empty open closed broken fresh hot cold warm cool happy sad beautiful pretty cute
nice busy
quiet loud fast slow wooden metal plastic brick concrete leather striped spotted solid plain fluffy furry sleeping
top bottom left right middle center side sides edge end corner upper lower row line rows pair pile stack bunch piece
part
area space set lots variety
sit sits sitting sat stand stands standing stood walk walks walking run runs running ride rides riding drive driving
fly flies
flying swim swimming jump jumps jumping play plays playing eat eats eating drink drinking cook cooking hold holds
holding
carry carries carrying wear wears wearing look looks looking watch watching see sees seen show shows showing shown
read
reading write writing talk talking smile smiles smiling laugh laughing sleep lay laying lie lies lying lean leaning
hang
hanging throw throwing catch catching kick hit hitting swing swinging pull pulling push pushing cut cutting make
making take
taking taken give giving put putting get getting go goes going come coming stop stopped parked park pose poses
posing wait
waiting work working travel traveling cross crossing climb climbing fall falling graze grazing feed feeding pet
petting
surf surfing skate skating skateboarding skiing snowboarding filled covered surrounded topped decorated painted made
used
placed attached displayed served mounted lined
yes no true question answer short image describe caption number count color shape size texture same different object
objects
thing things more less equal larger smaller bigger many how what where who kind type
baseball tennis soccer football basketball hockey golf game games match court field sport sports race racing
shirt pants jeans shorts dress skirt suit tie hat cap helmet jacket coat sweater shoes shoe boots sock gloves scarf
uniform
sunglasses watch ring necklace mask costume clothes clothing
time way year years first second third last today life world place things stuff
"""
"""Words in lower case, several of them twice; the tokenizer keeps each once."""
